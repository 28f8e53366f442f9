"""Texts of very different lengths through a DistilBERT: sorted by length, against padded to the longest possible.

``python benchmarks/perf/bench_text.py [--samples 128] [--rounds 3] [--json]``

padded
    Batches in the order of the input, each padded to 512 tokens; fp32, inference_mode.
extract
    The same texts through `extract`: batches of similar length, padded to their longest, written to a new store.

Both use all cores and the same batch size, load no model while they are timed, and take turns in one
process. The network has DistilBERT-base's shape and seeded random weights, the texts the lengths of
radiology reports. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from _race import Result, race, report, times_faster
from torch import Tensor
from transformers import BertTokenizerFast, DistilBertConfig, DistilBertModel
from transformers.utils import logging

from data.progress import Silent
from featurestore.config import ExtractConfig
from featurestore.extract import prepare, run
from featurestore.store import FeatureStore

TOKENS = 512
MEDIAN, SPREAD, LONGEST = 73, 0.61, 280
"""Lengths are log-normal; a spread of 0.61 puts the 95th percentile at 200 tokens."""

WORDS = 4000


def words() -> list[str]:
    """Return words of two syllables, each one token."""
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
    return [first + second for first in syllables for second in syllables][:WORDS]


def write_texts(path: Path, count: int) -> list[str]:
    """Write a manifest of texts, and return them."""
    rng = np.random.default_rng(0)
    vocabulary = np.array(words())
    lengths = np.exp(rng.normal(np.log(MEDIAN), SPREAD, count)).clip(8, LONGEST).astype(int)
    texts = [" ".join(rng.choice(vocabulary, length - 2)) + "." for length in lengths]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "text"], *([f"report-{number}", text] for number, text in enumerate(texts))])
    return texts


def write_checkpoint(folder: Path) -> None:
    """Write a DistilBERT-base with seeded random weights, and a tokenizer."""
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "."]
    (folder / "vocab.txt").write_text("\n".join(special + words()) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=TOKENS).save_pretrained(folder)
    torch.manual_seed(0)
    DistilBertModel(DistilBertConfig()).save_pretrained(folder)


class Contest:
    """The contestants, over the same texts and the same weights."""

    def __init__(self, folder: Path, count: int, batch_size: int | None) -> None:
        self.folder = folder
        self.texts = write_texts(folder / "texts.csv", count)
        write_checkpoint(folder / "distilbert")
        config = ExtractConfig(
            manifest=folder / "texts.csv",
            input="text",
            store=folder / "first",
            encoder=f"hf:{folder / 'distilbert'}",
            pooling="mean",
            batch_size=batch_size or "auto",
            device="cpu",
            precision="fp32",
        )
        self.job = prepare(config, create=True)
        self.tokenizer = BertTokenizerFast.from_pretrained(folder / "distilbert")
        self.model = DistilBertModel.from_pretrained(folder / "distilbert").eval()
        self.vectors: dict[str, Tensor] = {}
        self.stores = 0

    def padded(self) -> None:
        """Encode texts in their order, all padded to the same length."""
        size = self.job.batch_size
        batches = [self.texts[start : start + size] for start in range(0, len(self.texts), size)]
        self.vectors["padded"] = torch.cat([self._encode(batch) for batch in batches])

    def extract(self) -> None:
        """Extract into a new store."""
        self.stores += 1
        store = FeatureStore(self.folder / f"store-{self.stores}", create=True)
        features = store.open(self.job.encoder.spec, name=self.job.name)
        column = dataclasses.replace(self.job.columns[0], features=features)
        run(dataclasses.replace(self.job, store=store, columns=(column,)), progress=Silent())
        self.vectors["extract"] = torch.from_numpy(features.refresh().take(self.job.keys))

    def largest_difference(self) -> float:
        """Return the largest absolute difference between the vectors of the two."""
        return float((self.vectors["extract"] - self.vectors["padded"]).abs().max())

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each text."""
        return np.array([len(tokens) for tokens in self.tokenizer(self.texts)["input_ids"]])

    @torch.inference_mode()
    def _encode(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        mask = tokens["attention_mask"][:, :, None]
        states: Tensor = self.model(**tokens).last_hidden_state
        return (states * mask).sum(1) / mask.sum(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, help="of both; that of extract by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="frostline-bench-") as name:
        contest = Contest(Path(name), options.samples, options.batch_size)
        contest.extract()  # a first pass that is not timed
        laps = race({"padded to 512": contest.padded, "extract": contest.extract}, options.rounds)
        difference = contest.largest_difference()
        lengths, batch_size = contest.lengths(), contest.job.batch_size
    padded, ours = laps.values()
    results = [
        Result("extract against padding to 512", times_faster(ours, padded), "x faster", 4.0, at_least=True),
        Result("  the same in cpu time", times_faster(ours, padded, "cpu"), "x faster"),
        Result("largest difference", difference, "", 1e-5),
    ]
    middle, high = np.percentile(lengths, [50, 95])
    title = (
        f"{options.samples} texts (tokens: median {middle:.0f}, 95 % {high:.0f}, longest {lengths.max()}); "
        f"DistilBERT-base, batches of {batch_size}, {options.rounds} rounds"
    )
    return report(title, laps, results, samples=options.samples, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
