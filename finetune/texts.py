"""How alike written texts and their references are: BLEU-4 and ROUGE-1, -2, -L, with intervals.

Conventions, stated because published numbers differ in them:

* words are runs of letters and digits, in lower case; punctuation is none, as in the evaluation of COCO captions;
* ``bleu4`` is that of the corpus [1]_: matches and lengths are summed over all texts before anything is divided,
  a text is matched against all its references at once, the reference nearest in length counts for the brevity
  penalty (of two as near the shorter), and nothing is smoothed: without one match of four words it is 0;
* of a single text matches and totals of two and more words are one higher [2]_;
* ROUGE is the F1 [3]_ of the best reference, without stemming, and the mean over texts; ROUGE-L is that of the whole
  text as one sentence;
* all are fractions, not percent. A text without words scores 0 and is counted; a sample without a reference is left
  out and counted.

References
----------
.. [1] Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002.
.. [2] Lin and Och, "ORANGE: a Method for Evaluating Automatic Evaluation Metrics for Machine Translation", COLING 2004.
.. [3] Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL workshop 2004.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads.errors import HeadError
from heads.evaluation.bootstrap import Bootstrap, Floats

ORDERS = 4
"""BLEU counts runs of up to so many words."""

ROUGE = ("rouge1", "rouge2", "rougeL")

_WORD = re.compile(r"[^\W_]+")

Words = list[str]


def words_of(text: str) -> Words:
    """Return the words of a text: runs of letters and digits, in lower case."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def text_metrics(
    texts: Sequence[str],
    references: Sequence[Sequence[str | None]],
    *,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Return the metrics of some written texts.

    Parameters
    ----------
    texts
        One per sample.
    references
        What would have been right, one or several per sample; None, or one without words, is none.
    groups
        What is resampled together, one per sample; None makes each sample its own.
    n_boot, seed, level
        Resamples, their seed, and the coverage of the intervals.

    Returns
    -------
    dict
        ``texts`` (counted ones), ``left_out`` (those without a reference), ``wordless`` (texts without a word), and
        estimates of ``bleu4``, ``rouge1``, ``rouge2`` and ``rougeL``.

    Raises
    ------
    HeadError
        If there are not as many references as texts, or no text has one.
    """
    written, right = _words(texts, references)
    kept = [i for i, known in enumerate(right) if known]
    if not kept:
        raise HeadError("texts: none has a reference to be compared with")
    written, right = [written[i] for i in kept], [right[i] for i in kept]
    counts = np.array([_bleu_counts(*pair) for pair in zip(written, right, strict=True)], dtype=np.float64)
    rouge = np.array([_rouge(*pair) for pair in zip(written, right, strict=True)])
    own = None if groups is None else [groups[i] for i in kept]
    plan = Bootstrap.of(len(kept), own, n_boot=n_boot, seed=seed, level=level)
    replicates = plan.replicate(
        {
            "bleu4": lambda weights: _bleu(weights @ counts),
            "rouge": lambda weights: weights @ rouge / weights.sum(axis=1, keepdims=True),
        }
    )
    values = {"bleu4": replicates["bleu4"], **dict(zip(ROUGE, replicates["rouge"].T, strict=True))}
    return {
        "texts": len(kept),
        "left_out": len(texts) - len(kept),
        "wordless": sum(not words for words in written),
        **{name: plan.estimate(each, "no text has a reference") for name, each in values.items()},
    }


def text_scores(texts: Sequence[str], references: Sequence[Sequence[str | None]]) -> dict[str, Floats]:
    """Return what each text is worth by itself.

    Parameters
    ----------
    texts, references
        As of `text_metrics`.

    Returns
    -------
    dict
        ``bleu4``, ``rouge1``, ``rouge2`` and ``rougeL``, each of shape (n,), 0 to 1; NaN without a reference.

    Raises
    ------
    HeadError
        If there are not as many references as texts.
    """
    scores = np.full((len(texts), 1 + len(ROUGE)), np.nan)
    for i, (words, known) in enumerate(zip(*_words(texts, references), strict=True)):
        if known:
            counts = np.array(_bleu_counts(words, known), dtype=np.float64)
            scores[i] = [_bleu(counts, more=1), *_rouge(words, known)]
    return dict(zip(("bleu4", *ROUGE), scores.T, strict=True))


def _words(texts: Sequence[str], references: Sequence[Sequence[str | None]]) -> tuple[list[Words], list[list[Words]]]:
    """Return the words of each text, and of those of its references that have some."""
    if len(texts) != len(references):
        raise HeadError(f"texts: expected references for each of {len(texts)}, got {len(references)}")
    right = [[words for each in known if (words := words_of(each or ""))] for known in references]
    return [words_of(text) for text in texts], right


def _runs(words: Words, length: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(length)), strict=False))


def _bleu_counts(words: Words, references: list[Words]) -> list[int]:
    """Return what BLEU sums over texts: matches of 1 to 4 words, runs of as many, length, length of the reference."""
    matches, totals = [], []
    for length in range(1, ORDERS + 1):
        written: Counter[tuple[str, ...]] = _runs(words, length)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= _runs(reference, length)
        matches.append((written & most).total())
        totals.append(written.total())
    nearest = min((abs(len(reference) - len(words)), len(reference)) for reference in references)
    return [*matches, *totals, len(words), nearest[1]]


def _bleu(sums: Floats, *, more: int = 0) -> Floats:
    """Return BLEU of counts, shape (..., 10), as shape (...); `more` is added for runs of two and more words."""
    added = np.array([0] + [more] * (ORDERS - 1))
    matches, totals = sums[..., :ORDERS] + added, sums[..., ORDERS : 2 * ORDERS] + added
    length, reference = sums[..., -2], sums[..., -1]
    with np.errstate(divide="ignore"):  # the logarithm of no match
        mean = np.log(np.divide(matches, totals, out=np.zeros_like(matches), where=totals > 0)).mean(axis=-1)
        brevity = np.minimum(0, 1 - reference / length)
    return np.asarray(np.exp(mean + brevity))


def _rouge(words: Words, references: list[Words]) -> list[float]:
    """Return ROUGE-1, -2 and -L: of each the best reference's."""
    return [
        max(_overlap(_runs(words, 1), _runs(reference, 1)) for reference in references),
        max(_overlap(_runs(words, 2), _runs(reference, 2)) for reference in references),
        max(_f1(_longest_common(words, reference), len(words), len(reference)) for reference in references),
    ]


def _overlap(written: Counter[tuple[str, ...]], reference: Counter[tuple[str, ...]]) -> float:
    return _f1((written & reference).total(), written.total(), reference.total())


def _f1(common: int, written: int, reference: int) -> float:
    return 2 * common / (written + reference) if common else 0.0


def _longest_common(one: Words, other: Words) -> int:
    """Return the length of the longest sequence of words that is in both in this order, with gaps."""
    above = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for place, against in enumerate(other):
            row.append(above[place] + 1 if word == against else max(above[place + 1], row[-1]))
        above = row
    return above[-1]
