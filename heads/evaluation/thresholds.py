"""Where to cut a score into yes and no: chosen on out-of-fold data, applied everywhere with ``>=``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.errors import did_you_mean
from data.task import Task
from heads.errors import HeadError
from heads.evaluation.scoring import part_scores

Rule = Literal["youden", "gmean", "sensitivity", "specificity", "half"]


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A threshold and how it came about.

    Attributes
    ----------
    value
        Scores at or above it are positive; always finite.
    rule
        How it was chosen.
    at
        The sensitivity or specificity asked for.
    sensitivity, specificity
        What it gives on the data it was chosen on; None where that has no positives or no negatives.
    reason
        Why it is 0.5 although another rule was asked for.
    """

    value: float
    rule: Rule
    at: float | None = None
    sensitivity: float | None = None
    specificity: float | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the threshold as JSON-ready values."""
        return asdict(self)


def parse_rule(text: str) -> tuple[Rule, float | None]:
    """Return rule and value to reach from a user's words: ``youden``, ``gmean``, ``0.5``, ``sensitivity=0.9``.

    Raises
    ------
    HeadError
        If they name no rule.
    """
    name, _, reach = text.partition("=")
    try:
        at = float(reach) if reach else None
    except ValueError:
        raise HeadError(f"--threshold {text}: expected a number after '=', found {reach!r}") from None
    rule = "half" if name.strip() == "0.5" else name.strip()
    if rule not in get_args(Rule):
        raise HeadError(f"--threshold {text}: expected youden, gmean, 0.5, sensitivity=<value> or specificity=<value>")
    _check_rule(rule, at)
    return cast("Rule", rule), at


def choose_threshold(
    y_true: ArrayLike, scores: ArrayLike, *, rule: Rule = "youden", at: float | None = None
) -> Threshold:
    """Return the threshold that a rule picks on out-of-fold scores.

    Parameters
    ----------
    y_true
        0, 1 or NaN (unknown, ignored), shape (n,).
    scores
        Probability of the positive class, made by models that did not see the sample, shape (n,).
    rule
        ``youden`` maximises sensitivity + specificity, ``gmean`` their product; ``sensitivity`` and
        ``specificity`` reach at least `at` and give the other as much as possible; ``half`` is 0.5.
        Ties go to the higher sensitivity.
    at
        The value to reach, 0 < at <= 1, for ``sensitivity`` and ``specificity``.

    Returns
    -------
    Threshold
        Midway between two neighbouring scores, so that it does not hang on one sample's last digit.
        With one class only there is nothing to choose by: 0.5, with the reason.

    Raises
    ------
    HeadError
        If the arguments do not fit.
    """
    _check_rule(rule, at)
    y, s = np.asarray(y_true, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if y.shape != s.shape or y.ndim != 1:
        raise HeadError(f"a threshold needs labels and scores of one shape (n,), got {y.shape} and {s.shape}")
    known = ~np.isnan(y)
    y, s = y[known], s[known]
    if not np.isin(y, (0, 1)).all() or not np.isfinite(s).all():
        raise HeadError("a threshold needs labels that are 0, 1 or NaN, and finite scores")
    n_positive = int(y.sum())
    n_negative = len(y) - n_positive
    if not (n_positive and n_negative):
        return Threshold(value=0.5, rule="half", reason="only one class to choose a threshold by")
    if rule == "half":
        value = 0.5
    else:
        cuts, hits, false_alarms = _candidates(y, s)
        value = float(cuts[_pick(rule, at or 0.0, hits, false_alarms)])
    positive = s >= value
    return Threshold(
        value=value,
        rule=rule,
        at=at,
        sensitivity=float(positive[y == 1].mean()),
        specificity=float(1 - positive[y == 0].mean()),
    )


def choose_thresholds(
    task: Task, y_true: ArrayLike, scores: ArrayLike, *, rule: str = "youden"
) -> dict[str, Threshold]:
    """Return the thresholds of a task: of its positive class, each label or each binary target (mixed), else none.

    Parameters
    ----------
    task
        The task; only its kind and classes matter.
    y_true, scores
        Labels and out-of-fold probabilities, shape (n,) for binary, (n, L) for multilabel; those of a mixed task.
    rule
        In the words of `parse_rule`.

    Raises
    ------
    HeadError
        If the arguments do not fit.
    """
    name, at = parse_rule(rule)
    if task.kind == "mixed":
        own = zip(task.parts, np.asarray(y_true).T, part_scores(np.asarray(scores), task), strict=True)
        return {
            part.targets[0]: choose_threshold(y, s, rule=name, at=at) for part, y, s in own if part.kind == "binary"
        }
    if task.kind not in ("binary", "multilabel"):
        return {}
    labels = task.classes[-1:] if task.kind == "binary" else task.classes
    y, s = (np.atleast_2d(np.asarray(values, dtype=np.float64).T).T for values in (y_true, scores))
    if y.shape != s.shape or y.shape[1] != len(labels):
        raise HeadError(f"thresholds need labels and scores of shape (n, {len(labels)}), got {y.shape} and {s.shape}")
    return {label: choose_threshold(y[:, j], s[:, j], rule=name, at=at) for j, label in enumerate(labels)}


def _check_rule(rule: str, at: float | None) -> None:
    if rule not in get_args(Rule):
        raise HeadError(f"threshold rule {rule!r}: {did_you_mean(rule, get_args(Rule))}")
    if rule in ("sensitivity", "specificity"):
        if at is None or not 0 < at <= 1:
            raise HeadError(
                f"threshold rule {rule!r} needs the value to reach, such as {rule}=0.9 (0 < value <= 1), found {at}"
            )
    elif at is not None:
        raise HeadError(f"threshold rule {rule!r} takes no value to reach, got {at}")


def _candidates(
    y: NDArray[np.float64], s: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return every distinct way to cut, lowest threshold first, with its hits and false alarms."""
    distinct, run = np.unique(s, return_inverse=True)
    positives = np.bincount(run, weights=y).astype(np.int64)
    everyone = np.bincount(run).astype(np.int64)
    # Cutting below run k keeps runs k and above; the last way keeps none.
    hits = np.append(np.cumsum(positives[::-1])[::-1], 0)
    kept = np.append(np.cumsum(everyone[::-1])[::-1], 0)
    middle = distinct[:-1] + np.diff(distinct) / 2
    # Between neighbouring floats there is no middle: the upper one is the cut.
    middle = np.where(middle > distinct[:-1], middle, distinct[1:])
    cuts = np.concatenate([distinct[:1], middle, [np.nextafter(distinct[-1], np.inf)]])
    return cuts, hits, kept - hits


def _pick(rule: str, at: float, hits: NDArray[np.int64], false_alarms: NDArray[np.int64]) -> int:
    """Return which candidate the rule picks; whole-number arithmetic makes ties exact."""
    n_positive, n_negative = hits[0], false_alarms[0]
    rejections = n_negative - false_alarms
    if rule == "youden":
        return int(np.argmax(hits * n_negative + rejections * n_positive))
    if rule == "gmean":
        return int(np.argmax(hits * rejections))
    if rule == "sensitivity":
        return int(np.flatnonzero(hits >= at * n_positive - 1e-9)[-1])
    return int(np.flatnonzero(rejections >= at * n_negative - 1e-9)[0])
