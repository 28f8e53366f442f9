"""Whether readers keep up with an encoder of base size on a CPU, by the bottleneck that `extract` reports itself.

``python benchmarks/perf/bench_readers.py [--samples 16] [--datasets DIR] [--json]``

pictures
    JPEGs of a camera's size through ViT-B/16.
recordings
    Spoken digits where the public data sets are, else noise of five seconds, as spectrograms through ViT-B/16.
videos
    16 frames of each clip through ViT-B/16.
texts
    Reports through BERT-base, from a table and from CHAT transcripts.

The weights are random and seeded: the work is that of the trained networks. Reading and encoding overlap; what is
measured is the share of the time in which an encoder waited for a reader. Exit code 1 if encoding is not what bounds
an extraction.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import soundfile
import torch
from _race import Result, report
from bench_extract import write_pictures
from bench_text import words, write_texts
from bench_video import write_clip
from transformers import BertConfig, BertModel, BertTokenizerFast
from transformers.utils import logging as transformers_logging

from featurestore.config import ExtractConfig
from featurestore.extract import extract
from featurestore.summary import ExtractSummary

VIT = "timm:vit_base_patch16_224/random:0"
TOKENS = 512


def write_bert(folder: Path) -> str:
    """Write a BERT-base with seeded random weights and a tokenizer; return its id."""
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "."]
    (folder / "vocab.txt").write_text("\n".join(special + words()) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=TOKENS).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)
    return f"hf:{folder}"


def write_table(path: Path, column: str, files: list[Path]) -> Path:
    """Write a manifest of files."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", column], *([each.stem, str(each)] for each in files)])
    return path


def write_noise(folder: Path, count: int) -> list[Path]:
    """Write recordings of five seconds."""
    rng, paths = np.random.default_rng(0), [folder / f"{i}.wav" for i in range(count)]
    for path in paths:
        soundfile.write(path, rng.normal(size=5 * 16_000) / 10, 16_000)
    return paths


def write_transcripts(folder: Path, texts: list[str]) -> list[Path]:
    """Write each text as a CHAT transcript of utterances of eight words."""
    paths = [folder / f"{i}.cha" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        said = text.removesuffix(".").split()
        lines = [f"*PAR:\t&-uh {' '.join(said[at : at + 8])} . \x15{at}_{at + 8}\x15" for at in range(0, len(said), 8)]
        path.write_text("\n".join(["@UTF8", "@Begin", *lines, "@End", ""]), encoding="utf-8")
    return paths


def jobs(folder: Path, count: int, datasets: Path | None) -> Iterator[tuple[str, Path, str]]:
    """Yield what is read, its manifest and its encoder."""
    for name in ("pictures", "sounds", "films", "talks"):
        (folder / name).mkdir()
    yield "pictures", write_table(folder / "p.csv", "image", write_pictures(folder / "pictures", count)), VIT
    digits = sorted((datasets / "fsdd" / "audio").glob("*.wav")) if datasets else []
    recordings = digits[:: max(len(digits) // count, 1)][:count] or write_noise(folder / "sounds", count)
    kind = "spoken digits" if digits else "recordings"
    yield kind, write_table(folder / "a.csv", "audio", recordings), f"spectrogram+{VIT}"
    clips = [write_clip(folder / "films" / f"{i}.mp4", 100 + i) for i in range(max(count // 8, 2))]
    yield "videos", write_table(folder / "v.csv", "video", clips), f"frames+{VIT}"
    bert, texts = write_bert(folder / "bert"), write_texts(folder / "t.csv", 2 * count)
    yield "texts", folder / "t.csv", bert
    yield "transcripts", write_table(folder / "c.csv", "text", write_transcripts(folder / "talks", texts)), bert


def lines(what: str, summary: ExtractSummary) -> list[Result]:
    """Return the share of the time that each stage took, and whether encoding is what the summary names."""
    total = sum(summary.seconds_by_stage.values())
    waiting = summary.seconds_by_stage["waiting"] / total
    bound_by = f"bound by {summary.bottleneck}"
    return [
        Result(f"{what}: {bound_by}", float(summary.bottleneck == "encoding"), "", 1.0, at_least=True),
        *(
            Result(f"  {stage}", 100 * seconds / total, "% of the time")
            for stage, seconds in summary.seconds_by_stage.items()
            if stage != "waiting"
        ),
        Result("  waiting for readers", 100 * waiting, "% of the time"),
        Result("  samples", summary.samples_per_second, "per second"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--datasets", type=Path, default=os.environ.get("FROSTLINE_DATASETS"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    results: list[Result] = []
    datasets = Path(options.datasets) if options.datasets else None
    with tempfile.TemporaryDirectory(prefix="frostline-bench-") as name:
        folder = Path(name)
        for what, manifest, encoder in jobs(folder, options.samples, datasets):
            config = ExtractConfig(
                manifest=manifest, store=folder / f"store of {what}", encoder=encoder, device="cpu", precision="fp32"
            )
            summary = extract(config)
            assert not summary.failures
            results += lines(what, summary)
    title = f"Extraction by ViT-B/16 and BERT-base on {torch.get_num_threads()} threads, {options.samples} samples each"
    return report(title, {}, results, samples=1, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
