"""PromptSet: the embeddings of the classes' prompts, one averaged vector per class, in the order of the classes.

A prompt is a text sample like any other: it is encoded once, kept in the store under its encoder's
fingerprint, and read from there ever after without loading an encoder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.digest import Keys, as_keys, content_key, digest_json
from data.progress import Progress
from data.prompts import PromptTexts, make_prompts
from data.task import Task
from featurestore.catalog import ALIASES, canonical
from featurestore.config import ExtractConfig
from featurestore.errors import EncoderError, FeaturesMissing, UnknownEncoder
from featurestore.extract import extract
from featurestore.features import Features
from featurestore.pooling_text import CHUNKS
from featurestore.store import FeatureStore
from heads.config import PromptOptions
from heads.context import Context
from heads.errors import BundleError, HeadError
from heads.inputs import Block, block_of, stored_id

Average = Literal["mean", "renormalized"]
Control = Literal["none", "zero", "shuffled"]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptSet:
    """The prompts of a task's classes, and their embeddings.

    Attributes
    ----------
    texts
        The prompts.
    block
        The text encoder's features.
    average
        How a class's prompts become one vector, see `average_prompts`.
    control
        ``zero`` and ``shuffled`` are controls that say nothing, or the wrong thing, of the classes.
    seed
        Of the shuffling.
    positive, negative
        One vector per class, shape (C, p); `negative` of a multilabel task only.
    logit_scale, logit_bias
        The checkpoint's own, see `heads.context.Context`.
    """

    texts: PromptTexts
    block: Block
    average: Average
    control: Control
    seed: int
    positive: Vectors
    negative: Vectors | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the vectors: text encoder, texts, order of the classes, averaging, control."""
        return _fingerprint(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the vectors, as JSON-ready values."""
        described = {
            "encoder": asdict(self.block),
            "classes": list(self.texts.classes),
            "positive": [list(texts) for texts in self.texts.positive],
            "negative": None if self.negative is None else [list(texts) for texts in self.texts.negative],
            "average": self.average,
            "control": self.control,
            "seed": self.seed if self.control == "shuffled" else None,
            "logit_scale": self.logit_scale,
            "logit_bias": self.logit_bias,
        }
        return {**described, "fingerprint": _fingerprint(described)}

    def added_to(self, context: Context) -> Context:
        """Return what a head is told, with these prompts."""
        return replace(
            context,
            prompts=self.positive,
            negative_prompts=self.negative,
            logit_scale=self.logit_scale,
            logit_bias=self.logit_bias,
        )


def load_prompts(
    options: PromptOptions, task: Task, store: FeatureStore, progress: Progress, *, seed: int
) -> PromptSet | None:
    """Return the prompts of a task; what the store does not hold is encoded and kept there.

    Parameters
    ----------
    options
        Text encoder, prompts, average and control.
    task
        Its classes, in its order, are prompted.
    store
        Where the prompts' embeddings are.
    progress
        Told about encoding.
    seed
        Of shuffled prompts.

    Returns
    -------
    PromptSet or None
        None if no text encoder is named.

    Raises
    ------
    ConfigError
        If the prompts are wrong, see `data.prompts.make_prompts`.
    HeadError
        If prompt options are given without an encoder or for a regression, or the encoder cannot encode the prompts.
    """
    if options.prompt_encoder is None:
        _refuse_idle(options)
        return None
    if not task.classes:
        raise HeadError("--prompt-encoder: prompts stand for classes, and a regression has none; leave it out")
    texts = make_prompts(task.classes, templates=options.template, file=options.prompts)
    features = _encoded(store, options.prompt_encoder, _distinct(texts, task), progress)
    positive = _averages(features, texts.positive, options.prompt_average)
    negative = _averages(features, texts.negative, options.prompt_average) if task.kind == "multilabel" else None
    similarity: Mapping[str, float] = next(
        (made["similarity"] for made in features.provenance if "similarity" in made), {}
    )
    return PromptSet(
        texts=texts,
        block=block_of(features, options.prompt_encoder),
        average=options.prompt_average,
        control=options.prompt_control,
        seed=seed,
        positive=_controlled(positive, options.prompt_control, seed),
        negative=None if negative is None else _controlled(negative, options.prompt_control, seed),
        logit_scale=similarity.get("scale"),
        logit_bias=similarity.get("bias"),
    )


def average_prompts(vectors: NDArray[Any], average: Average) -> Vectors:
    """Return one vector of a class's prompts, float32, shape (p,).

    Parameters
    ----------
    vectors
        Embeddings of its prompts, shape (n, p).
    average
        ``mean``: the mean of the prompts, each scaled to unit length, as it is; it is shorter the less the prompts
        agree. ``renormalized``: that mean scaled to unit length again, as CLIP's prompt ensembles are.
    """
    units = _unit(vectors.astype(np.float64))
    mean = units.mean(axis=0)
    return np.asarray(_unit(mean) if average == "renormalized" else mean, dtype=np.float32)


def shuffled(n: int, seed: int) -> NDArray[np.int64]:
    """Return a random cycle of n positions: an order in which nothing keeps its place, if n is above 1."""
    order = np.random.default_rng(seed).permutation(n)
    cycle = np.empty(n, np.int64)
    cycle[order] = np.roll(order, 1)
    return cycle


def refuse_unaligned(head: str, blocks: Sequence[Block], prompts: PromptSet) -> None:
    """Refuse features and prompts that no common space makes comparable.

    Comparable are the two towers of one checkpoint, and texts with prompts of their own encoder.

    Raises
    ------
    HeadError
        If they are of different checkpoints, or pooled differently.
    """
    if len(blocks) > 1:
        raise HeadError(f"{head} compares prompts with the features of one encoder, {len(blocks)} were named")
    block, text = blocks[0], prompts.block
    if _checkpoint(block) != _checkpoint(text):
        aligned = ", ".join(row.alias for row in ALIASES if row.modality is None)
        raise HeadError(
            f"{head} compares features with prompts, but {block.encoder} and {text.encoder} share no space; "
            f"name one checkpoint with an image and a text tower for both ({aligned}, any CLIP or SigLIP), or "
            f"classify texts by prompts of their own encoder"
        )
    # A text in pieces lies in the space of its pieces.
    if block.pooling.removesuffix(CHUNKS) != text.pooling.removesuffix(CHUNKS):
        raise HeadError(
            f"{head} compares features with prompts, but those of {block.encoder} are pooled by {block.pooling} and "
            f"prompts by {text.pooling}, which is another space; extract with --pooling {text.pooling}"
        )


def refuse_other_classes(prompts: Mapping[str, Any], classes: Sequence[str], *, where: str) -> None:
    """Refuse a saved head whose prompts are not those of its classes, in their order.

    Parameters
    ----------
    prompts
        What the head says of its prompts, as `PromptSet.to_dict` wrote it; empty for a head without.
    classes
        The classes of its task.
    where
        The head, for messages.

    Raises
    ------
    BundleError
        If the classes or their order differ, or the prompts do not have the fingerprint they state.
    """
    if not prompts:
        return
    if list(classes) != prompts["classes"]:
        raise BundleError(
            f"{where}: the prompts are of {', '.join(prompts['classes'])} in this order, the task's classes are "
            f"{', '.join(classes)}; fit the head again"
        )
    if _fingerprint(dict(prompts)) != prompts["fingerprint"]:
        raise BundleError(f"{where}: the prompts do not have the fingerprint they state; fit the head again")


def _checkpoint(block: Block) -> str:
    """Return the full id of an encoder, without the fingerprint that may narrow it."""
    base, _, mark = block.encoder.rpartition("@")
    name = base if mark and block.fingerprint.startswith(mark) else block.encoder
    try:
        return canonical(name)
    except UnknownEncoder:  # imported features have names of their own
        return name


def _fingerprint(described: dict[str, Any]) -> str:
    """Return the digest of described prompts; how they were asked for and what the store held by then is no part."""
    values = {name: value for name, value in described.items() if name != "fingerprint"}
    return digest_json({**values, "encoder": described["encoder"]["fingerprint"]})


def _refuse_idle(options: PromptOptions) -> None:
    """Refuse options that nothing would come of."""
    for name in ("template", "prompts", "prompt_average", "prompt_control"):
        if getattr(options, name) != type(options).model_fields[name].default:
            flag = "--" + name.replace("_", "-")
            raise HeadError(f"{flag} is given without a text encoder; add --prompt-encoder, such as offline:minilm")


def _distinct(texts: PromptTexts, task: Task) -> list[str]:
    sides = (texts.positive, texts.negative) if task.kind == "multilabel" else (texts.positive,)
    return list(dict.fromkeys(text for side in sides for prompts in side for text in prompts))


def _encoded(store: FeatureStore, encoder: str, texts: Sequence[str], progress: Progress) -> Features:
    """Return the features of a text encoder that hold some texts; those that are missing are encoded."""
    features = _stored(store, encoder)
    if features is not None and features.contains(_keys(texts)).all():
        return features
    if features is None:
        name, chosen = canonical(encoder), {}
    else:
        # A fine-tuned encoder may have moved, and have its former path among its names.
        asked = stored_id(encoder)
        name = asked if asked in features.names else features.names[0]
        chosen = {key: getattr(features.spec, key) for key in ("pooling", "precision", "dtype")}
    with tempfile.TemporaryDirectory(prefix="frostline-prompts-") as folder:
        table = Path(folder) / "prompts.jsonl"
        rows = (json.dumps({"id": f"prompt {i}", "text": text}) for i, text in enumerate(texts))
        table.write_text("\n".join(rows), encoding="utf-8")
        config = ExtractConfig(manifest=table, input="text", id="id", store=store.path, encoder=(name,), **chosen)
        try:
            summary = extract(config, progress=progress)
        except EncoderError as error:
            raise HeadError(f"--prompt-encoder {encoder}: {error}") from error
    if summary.failures:
        raise HeadError(f"--prompt-encoder {encoder}: {summary.failures[0]['message']}")
    if summary.truncated:
        progress.note(
            f"--prompt-encoder {encoder}: {summary.truncated} of {len(texts)} prompts were cut at the encoder's limit; "
            f"shorten them"
        )
    # By its fingerprint: a store may hold other features of this name, too.
    return store.find(f"{name}@{summary.fingerprint}", modality="text")


def _stored(store: FeatureStore, encoder: str) -> Features | None:
    """Return an encoder's text features if there are any, whichever way its id is written."""
    with suppress(FeaturesMissing):
        return store.find(encoder, modality="text")
    with suppress(FeaturesMissing):
        return store.find(canonical(encoder), modality="text")
    return None


def _keys(texts: Iterable[str]) -> Keys:
    return as_keys(content_key(text.encode()) for text in texts)


def _averages(features: Features, texts: Sequence[Sequence[str]], average: Average) -> Vectors:
    """Return the vector of each class, shape (C, p)."""
    return np.stack([average_prompts(features.take(_keys(prompts), checked=True), average) for prompts in texts])


def _controlled(vectors: Vectors, control: Control, seed: int) -> Vectors:
    if control == "zero":
        return np.zeros_like(vectors)
    return vectors[shuffled(len(vectors), seed)] if control == "shuffled" else vectors


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return unit
