"""Find captions by images and images by captions, through a linear map between two frozen encoders, and write a page.

::

    frostline extract DIR/flickr8k_1k/manifest.csv --input path --store STORE --encoder offline:efficientnet-lite0
    for k in 0 1 2 3 4; do
      frostline extract DIR/flickr8k_1k/manifest.csv --input caption_$k --store STORE --encoder offline:minilm
    done
    python benchmarks/retrieval.py DIR/flickr8k_1k/manifest.csv --store STORE --captions caption_0 caption_1 caption_2 \
        caption_3 caption_4 --split split --page docs/retrieval.md

The map is a ridge regression from images to the mean of their captions, learned on the train rows; its penalty is the
one with the best mean reciprocal rank, both directions together, on the val rows. Test rows are looked at once.
Encoders of one space (CLIP) are compared as they are as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.progress import Silent
from data.sources import read_manifest
from featurestore.store import FeatureStore
from heads.evaluation.bootstrap import format_estimate
from heads.evaluation.ranking import retrieval_metrics
from heads.labelled import join_features
from heads.solvers.ridge import ridge_path

PENALTIES = np.logspace(-4, 4, 33)
KS = (1, 5, 10)
METRICS = (*(f"recall@{k}" for k in KS), "mrr", "median_rank")
SEED = 0
Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Images and their captions, as unit vectors.

    Attributes
    ----------
    images
        Shape (n, d).
    captions
        Shape (n, m, e): m captions of each image.
    groups
        What is resampled together, shape (n,).
    """

    images: Matrix
    captions: Matrix
    groups: NDArray[Any]

    def of(self, rows: NDArray[np.bool_]) -> Pairs:
        """Return some of the images, with their captions."""
        return Pairs(images=self.images[rows], captions=self.captions[rows], groups=self.groups[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearMap:
    """``(image - center) @ weight``, to be compared with ``caption - level``."""

    center: Matrix
    weight: Matrix
    level: Matrix

    def scores(self, pairs: Pairs) -> Matrix:
        """Return the cosine of every image with every caption, shape (n, n m)."""
        texts = (pairs.captions - self.level).reshape(-1, pairs.captions.shape[2])
        return unit((pairs.images - self.center) @ self.weight) @ unit(texts).T


def unit(vectors: Matrix) -> Matrix:
    """Return vectors scaled to unit length along the last axis."""
    scaled: Matrix = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return scaled


def ridge_maps(train: Pairs, penalties: Matrix) -> list[LinearMap]:
    """Return the map of each penalty, learned on some pairs."""
    center, texts = train.images.mean(axis=0), train.captions.mean(axis=1)
    level = texts.mean(axis=0)
    weights, _ = ridge_path(train.images - center, texts - level, np.ones(len(texts)), penalties)
    return [LinearMap(center=center, weight=weight.T, level=level) for weight in weights]


def random_map(train: Pairs, seed: int) -> LinearMap:
    """Return a map of Gaussian weights: the control that knows where both means are and nothing of what matches."""
    shape = train.images.shape[1], train.captions.shape[2]
    weight = np.random.default_rng(seed).normal(size=shape)
    return LinearMap(center=train.images.mean(axis=0), weight=weight, level=train.captions.mean(axis=1).mean(axis=0))


def judged(scores: Matrix, groups: NDArray[Any], *, n_boot: int = 1000) -> dict[str, dict[str, Any]]:
    """Return the metrics of both directions, of scores (n, n m); every caption of an image is right for it."""
    each = scores.shape[1] // len(scores)
    owner = np.repeat(np.arange(len(scores)), each)
    relevant = owner[None] == np.arange(len(scores))[:, None]
    options: dict[str, Any] = {"ks": KS, "n_boot": n_boot, "seed": SEED}
    return {
        "image to text": retrieval_metrics(scores, relevant, groups=groups, **options),
        "text to image": retrieval_metrics(scores.T, relevant.T, groups=np.repeat(groups, each), **options),
    }


def chance(candidates: int, right: int) -> dict[str, float]:
    """Return what a random order of the candidates gives on average, and the median rank of the first right one.

    The first of r right candidates among c is beyond place k with probability C(c - k, r) / C(c, r).
    """
    place = np.arange(candidates)
    beyond = np.ones(candidates + 1)
    for i in range(right):
        beyond[1:] *= np.maximum(candidates - 1 - place - i, 0) / (candidates - i)
    first = beyond[:-1] - beyond[1:]
    expected = {f"recall@{k}": float(1 - beyond[min(k, candidates)]) for k in KS}
    median = float(np.flatnonzero(1 - beyond >= 0.5)[0])
    return {**expected, "mrr": float((first / (place + 1)).sum()), "median_rank": median}


def best_map(maps: Sequence[LinearMap], val: Pairs) -> int:
    """Return the position of the map with the best mean reciprocal rank on some pairs."""
    ranks = [
        sum(each["mrr"]["value"] for each in judged(found.scores(val), val.groups, n_boot=1).values()) for found in maps
    ]
    return int(np.argmax(ranks))


def read_pairs(
    manifest: Path, store: Path, image: str, captions: Sequence[str], encoders: tuple[str, str], split: str, group: str
) -> tuple[Pairs, NDArray[Any]]:
    """Return the pairs of a manifest, and the split of each; stop where a row lacks the image or a caption."""
    stored = FeatureStore(store)
    columns, splits, groups = [], np.zeros(0), np.zeros(0)
    for column in (image, *captions):
        rows = read_manifest(manifest, input=column, split=split, group=group)
        encoder = encoders[column != image]
        inputs = join_features(
            rows, stored, (encoder,), pooling=None, precision=None, normalize="l2", progress=Silent()
        )
        if inputs.dropped:
            raise SystemExit(f"{manifest}: rows without {encoder} features of {column}: {dict(inputs.dropped)}")
        columns.append(np.asarray(inputs.X, dtype=np.float64))
        splits, groups = np.asarray(rows.role("split")), np.asarray(rows.role("group"))
    return Pairs(images=columns[0], captions=np.stack(columns[1:], axis=1), groups=groups), splits


def table(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return a table of each direction: one line per way to score."""
    lines = []
    for direction in ("image to text", "text to image"):
        lines += [f"## {direction.capitalize()}", "", f"| | {' | '.join(METRICS)} |", "|---|" + "---|" * len(METRICS)]
        for name, found in rows.items():
            values = (found[direction][metric] for metric in METRICS)
            texts = (f"{value:.3g}" if isinstance(value, float) else format_estimate(value) for value in values)
            lines.append(f"| {name} | {' | '.join(texts)} |")
        lines.append("")
    return lines


def results(pairs: Pairs, split: NDArray[Any]) -> tuple[dict[str, dict[str, Any]], float]:
    """Return the metrics of every way to score the test rows, and the penalty that val rows chose."""
    train, val, test = (pairs.of(split == name) for name in ("train", "val", "test"))
    maps = ridge_maps(train, PENALTIES)
    chosen = best_map(maps, val)
    ways = {"ridge map": maps[chosen].scores(test), "random map (control)": random_map(train, SEED).scores(test)}
    if test.images.shape[1] == test.captions.shape[2]:
        ways["the encoders as they are"] = test.images @ test.captions.reshape(-1, test.captions.shape[2]).T
    found = {name: judged(scores, test.groups) for name, scores in ways.items()}
    images, captions = len(test.images), test.captions.shape[1]
    found["chance"] = {
        "image to text": chance(images * captions, captions), "text to image": chance(images, 1),
    }  # fmt: skip
    return found, float(PENALTIES[chosen])


def main() -> None:
    """Read the features, learn the map, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--image", default="path", help="column of the images")
    parser.add_argument("--captions", nargs="+", default=["text"], help="columns of the captions")
    parser.add_argument("--image-encoder", default="offline:efficientnet-lite0")
    parser.add_argument("--text-encoder", default="offline:minilm")
    parser.add_argument("--split", default="split", help="column of train, val and test")
    parser.add_argument("--group", default="group_id", help="column of what is resampled together")
    parser.add_argument("--page", type=Path, required=True)
    given = parser.parse_args()
    encoders = given.image_encoder, given.text_encoder
    pairs, split = read_pairs(
        given.manifest, given.store, given.image, given.captions, encoders, given.split, given.group
    )
    found, penalty = results(pairs, split)
    counts = {name: int((split == name).sum()) for name in ("train", "val", "test")}
    images, captions, name = counts["test"], pairs.captions.shape[1], given.manifest.resolve().parent.name
    learned = f"{counts['train']} images with {captions} captions each"
    page = [
        f"# Retrieval: {name}",
        "",
        "Written by `python benchmarks/retrieval.py`, whose text has the commands: frozen features of images by",
        f"`{encoders[0]}` and of texts by `{encoders[1]}`; a ridge map from the first to the second, learned on",
        f"{learned}; {counts['val']} others chose its penalty, {penalty:.3g}.",
        "",
        f"Figures are of {images} test images and their {images * captions} captions. Recall@K is the share of queries",
        "with a right candidate among the first K, and ties are lost; 95 % intervals are of 1,000 resamples of groups",
        "of queries. The control maps images by random numbers; chance is what a random order gives on average.",
        "",
        *table(found),
    ]
    given.page.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
