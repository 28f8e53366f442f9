"""Augmented views: copies of training samples that heads learn from, and are never judged by.

::

    X       n samples, of which a fit is given some          what is judged, calibrated and reported
    views   K rows of each sample that has views             join the samples of a fit, and nothing else

A sample and its views share its target and its group, so that no fold and no inner split separates them, and together
weigh as much as one sample: a penalty is as strong as without views, and classes count as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.digest import key_bytes
from data.filecache import FileCache
from data.progress import Progress
from featurestore.describe import differences
from featurestore.encoder_ids import without_views
from featurestore.errors import FeaturesMissing
from featurestore.features import Features
from featurestore.spec import EncoderSpec
from featurestore.store import FeatureStore
from heads.bags import Bags
from heads.errors import HeadError
from heads.inputs import Block, Normalize, keys_of, unit_length
from heads.many import Job, fit_many

if TYPE_CHECKING:
    from heads.base import Head
    from heads.labelled import Labelled


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """The augmented views of some samples.

    Attributes
    ----------
    encoders, fingerprints
        The feature sets that they were read from.
    policy
        How they were made (`featurestore.augmentation.Augmentation.to_dict`).
    owners
        Positions of the m samples that have views, ascending.
    values
        Their K views, float32, shape (m, K, d): in the columns of X; encoders without views are repeated.
    """

    encoders: tuple[str, ...]
    fingerprints: tuple[str, ...]
    policy: Mapping[str, Any]
    owners: NDArray[np.int64]
    values: NDArray[np.float32]

    @property
    def per_sample(self) -> int:
        """Number of views of a sample."""
        return int(self.values.shape[1])

    def take(self, rows: NDArray[np.int64]) -> Views:
        """Return the views of some of the samples, by position."""
        place = np.full(max(self.owners.max(initial=-1), rows.max(initial=-1)) + 1, -1)
        place[self.owners] = np.arange(len(self.owners))
        found = place[rows]
        return Views(
            encoders=self.encoders,
            fingerprints=self.fingerprints,
            policy=self.policy,
            owners=np.flatnonzero(found >= 0),
            values=self.values[found[found >= 0]],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what a record says of the views."""
        return {
            "encoders": list(self.encoders),
            "fingerprints": list(self.fingerprints),
            "policy": dict(self.policy),
            "per_sample": self.per_sample,
        }


def fit_on(data: Labelled, jobs: Sequence[Job]) -> Iterator[Head | HeadError]:
    """Yield each job's head, fitted on its rows of labelled data and on their augmented views, if there are any.

    Parameters
    ----------
    data
        The samples.
    jobs
        Unfitted heads, and the positions of the samples that each learns from; see `heads.many.fit_many`.
    """
    if data.views is None:
        return fit_many(jobs, data.X, data.y, groups=data.groups, context=data.context)
    assert not isinstance(data.X, Bags)  # `read_views` refuses bags
    views = data.views
    X = np.concatenate([data.X, views.values.reshape(-1, data.X.shape[1])])
    sample_of = np.concatenate([np.arange(len(data.X)), np.repeat(views.owners, views.per_sample)])
    widened = [_with_copies(job, sample_of) for job in jobs]
    return fit_many(widened, X, data.y[sample_of], groups=data.groups[sample_of], context=data.context)


def _with_copies(job: Job, sample_of: NDArray[np.int64]) -> Job:
    """Return a job on all copies of its samples, each of which weighs as much as all of its copies together."""
    rows = np.flatnonzero(np.isin(sample_of, job.rows))
    own = sample_of[rows]
    return Job(job.head, rows, 1 / np.bincount(own)[own])


def plain_encoders(encoders: Sequence[str]) -> tuple[str, ...]:
    """Return the encoders whose features are judged: those inside ``augmented+ID``, and the others."""
    return tuple(map(without_views, encoders))


def find_views(
    store: FeatureStore, encoders: Sequence[str], *, pooling: str | None, precision: str | None, bag: str | None
) -> dict[int, Features]:
    """Return the stored views of those encoders that give some, by the encoders' positions.

    Parameters
    ----------
    store, encoders, pooling, precision
        See `heads.inputs.find_features`.
    bag
        The column of bags, if samples are such.

    Raises
    ------
    FeaturesMissing
        If the store has none.
    HeadError
        If encoders are augmented in different ways, the one inside is named beside its views, or samples are bags.
    """
    wanted = {number: name for number, name in enumerate(encoders) if without_views(name) != name}
    for name in wanted.values():
        if without_views(name) in encoders:
            raise HeadError(f"--encoder {name} brings the features of {without_views(name)} with it; leave those out")
        if bag is not None:
            raise HeadError(
                f"--encoder {name}: views of bags (--bag {bag}) are not supported, as there are views of images and "
                f"none of a bag; leave out --bag, or name {without_views(name)}"
            )
    found = {
        number: store.find(name, pooling=pooling, precision=precision, modality="image")
        for number, name in wanted.items()
    }
    _refuse_other_policies(wanted, found)
    return found


def read_views(
    data: Labelled,
    store: FeatureStore,
    encoders: Sequence[str],
    *,
    pooling: str | None,
    precision: str | None,
    normalize: Normalize,
    progress: Progress,
) -> Views | None:
    """Read the augmented views of samples; None where no encoder gives any.

    Parameters
    ----------
    data
        The samples, with the features of `plain_encoders`.
    store, pooling, precision, normalize, progress
        See `heads.labelled.join_features`.
    encoders
        The ids that were asked for, one per block of the data.

    Raises
    ------
    FeaturesMissing
        If the store has no views of them, or not of all training samples.
    HeadError
        If samples are bags or tokens, if encoders are augmented in different ways, or if the views went through another
        encoder than the features of the samples.
    """
    bag = data.manifest.roles.get("bag")
    found = find_views(store, encoders, pooling=pooling, precision=precision, bag=bag)
    if not found:
        return None
    wanted = {number: encoders[number] for number in found}
    if isinstance(data.X, Bags):
        raise HeadError(
            f"--encoder {next(iter(wanted.values()))}: views beside tokens are not supported, as a view is one vector; "
            f"choose a pooling of one vector per sample, or name the encoder without views"
        )
    policy = next(iter(found.values())).spec.preprocess
    for number, features in found.items():
        _refuse_other_encoder(wanted[number], features, data.blocks[number], store)
    there = np.ones(len(data.y), bool)
    keys = {}
    for number, features in found.items():
        keys[number], _ = keys_of(
            data.manifest, features, FileCache(store.files_cache), workers=os.cpu_count() or 1, progress=progress
        )
        stored = features.contains(keys[number])
        _refuse_never_encoded(data, number, wanted[number], features, keys[number], stored, store)
        there &= stored
    owners = np.flatnonzero(there)
    values = np.repeat(np.asarray(data.X)[owners][:, None], policy["views"], axis=1)
    for number, features in found.items():
        own = _columns(data.blocks, number)
        vectors = features.take_bags(keys[number][owners], checked=True).values.astype(np.float32)
        values[..., own] = (unit_length(vectors) if normalize == "l2" else vectors).reshape(values[..., own].shape)
    return Views(
        encoders=tuple(wanted.values()),
        fingerprints=tuple(features.fingerprint for features in found.values()),
        policy=policy,
        owners=owners,
        values=values,
    )


def views_remark(data: Labelled) -> list[str]:
    """Remark on the views that heads learn from, and on training samples that have none."""
    if data.views is None:
        return []
    views, train = data.views, data.rows("train")
    of_train, of_val = (int(np.isin(rows, views.owners).sum()) for rows in (train, data.rows("val")))
    lacking = len(train) - of_train
    remark = (
        f"heads learned from {views.per_sample} augmented views of each training sample beside it, with the weight of "
        f"one sample together ({' + '.join(views.encoders)}); every number is of the samples themselves"
    )
    if any(step["transform"] == "RandomHorizontalFlip" for step in views.policy["policy"]):
        remark += "; some views are mirrored, which is wrong where a label tells left from right"
    if lacking:
        remark += f"; {lacking:,} of {len(train):,} training samples have no views"
    val = len(data.rows("val"))
    if of_val < val:
        remark += f"; {val - of_val:,} of {val:,} val samples have none where they join the final fit"
    return [remark]


def _refuse_other_policies(names: Mapping[int, str], found: Mapping[int, Features]) -> None:
    """Refuse views that were made in different ways: view j of a sample is one row, whoever encodes it."""
    for number, features in list(found.items())[1:]:
        first = next(iter(found))
        differing = differences(found[first].spec.preprocess, features.spec.preprocess)
        if differing:
            raise HeadError(
                f"--encoder {names[first]} and --encoder {names[number]} are augmented in different ways "
                f"({'; '.join(differing)}); they are joined view by view, so give both the same options"
            )


def _refuse_other_encoder(name: str, features: Features, block: Block, store: FeatureStore) -> None:
    """Refuse views that went through another encoder than the features of the samples themselves."""
    inside = EncoderSpec.from_dict(features.spec.architecture["encoder"])
    if inside.fingerprint != block.fingerprint:
        plain = next(each.spec for each in store.features() if each.fingerprint == block.fingerprint)
        differing = "; ".join(differences(plain.to_dict(), inside.to_dict()))
        raise HeadError(
            f"--encoder {name}: its views went through another encoder than the stored features of {block.encoder} "
            f"({differing}); extract both with the same options"
        )


def _refuse_never_encoded(
    data: Labelled,
    number: int,
    name: str,
    features: Features,
    keys: NDArray[Any],
    stored: NDArray[np.bool_],
    store: FeatureStore,
) -> None:
    """Refuse training samples whose views were never encoded; those that failed are left without."""
    failed = store.ledger(features.group).failures()
    masked = np.isnan(np.asarray(data.X)[:, _columns(data.blocks, number)]).any(axis=1)
    train = data.split == "train"
    lacking = [i for i in np.flatnonzero(train & ~stored & ~masked) if key_bytes(keys[i]) not in failed]
    if lacking:
        shown = ", ".join(data.manifest.ids[i] for i in lacking[:3])
        path = data.manifest.path
        raise FeaturesMissing(
            f"{path}: {len(lacking)} of {int(train.sum())} training samples have no {name} features in the store "
            f"(first: {shown}); run: frostline extract {path} --encoder {name} --store {store.path}"
        )


def _columns(blocks: Sequence[Block], number: int) -> slice:
    """Return the columns of one block in X."""
    start = sum(block.dim for block in blocks[:number])
    return slice(start, start + blocks[number].dim)
