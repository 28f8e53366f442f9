"""BLEU and ROUGE against the libraries that define them, and intervals over groups."""

from __future__ import annotations

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from finetune.texts import text_metrics, text_scores, words_of
from heads.errors import HeadError

WORDS = "a the dog cat runs sleeps on grass red big man woman in park with ball".split()  # noqa: SIM905


def make_texts(n: int, *, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Return n texts, of which most share runs of words with one to three references."""
    rng = np.random.default_rng(seed)
    texts, references = [], []
    for _ in range(n):
        base = list(rng.choice(WORDS, rng.integers(3, 15)))
        known = []
        for _ in range(rng.integers(1, 4)):
            kept = [word if rng.random() < 0.8 else str(rng.choice(WORDS)) for word in base]
            known.append(" ".join(kept[: rng.integers(2, len(kept) + 1)]).capitalize() + ".")
        texts.append(" ".join(base[: rng.integers(1, len(base) + 1)]) + " !")
        references.append(known)
    return texts, references


def plain(texts: list[str]) -> list[str]:
    return [" ".join(words_of(text)) for text in texts]


def columns(references: list[list[str]]) -> list[list[str | None]]:
    """Return the references as sacrebleu takes them: the first of each text, the second, and so on."""
    return [
        [" ".join(words_of(known[i])) if i < len(known) else None for known in references]
        for i in range(max(map(len, references)))
    ]


@pytest.mark.parametrize("seed", range(3))
def test_bleu_of_a_corpus_is_that_of_sacrebleu(seed: int) -> None:
    texts, references = make_texts(30, seed=seed)
    theirs = BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(plain(texts), columns(references))
    mine = text_metrics(texts, references, n_boot=0)["bleu4"]["value"]
    assert mine == pytest.approx(theirs.score / 100, abs=1e-9)
    assert 0.1 < mine < 0.9


def test_bleu_of_one_text_is_that_of_sacrebleu() -> None:
    texts, references = make_texts(60)
    scorer = BLEU(tokenize="none", smooth_method="add-k", smooth_value=1)
    theirs = [
        scorer.sentence_score(text, [" ".join(words_of(each)) for each in known]).score / 100
        for text, known in zip(plain(texts), references, strict=True)
    ]
    np.testing.assert_allclose(text_scores(texts, references)["bleu4"], theirs, atol=1e-9)
    assert np.std(theirs) > 0.1


def test_rouge_is_that_of_rouge_score() -> None:
    texts, references = make_texts(60)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    found = text_scores(texts, references)
    metrics = text_metrics(texts, references, n_boot=0)
    for name in ("rouge1", "rouge2", "rougeL"):
        theirs = [scorer.score_multi(known, text)[name].fmeasure for text, known in zip(texts, references, strict=True)]
        np.testing.assert_allclose(found[name], theirs, atol=1e-12)
        assert metrics[name]["value"] == pytest.approx(np.mean(theirs))


def test_a_known_example_of_clipping() -> None:
    """The example of the BLEU paper: seven times `the`, of which two are in a reference."""
    references = [["The cat is on the mat.", "There is a cat on the mat."]]
    texts = ["the the the the the the the"]
    assert text_scores(texts, references)["rouge1"][0] == pytest.approx(2 * 2 / (7 + 6))
    bleu = (2 / 7 * 1 / 7 * 1 / 6 * 1 / 5) ** 0.25
    assert text_scores(texts, references)["bleu4"][0] == pytest.approx(bleu)


def test_equal_texts_score_one_and_unlike_ones_nothing() -> None:
    text = "A dog runs on the red grass"
    for scores in (text_scores([text], [[text.upper() + "!"]]), text_metrics([text], [[text]], n_boot=0)):
        for name in ("bleu4", "rouge1", "rouge2", "rougeL"):
            value = scores[name]["value"] if isinstance(scores[name], dict) else scores[name][0]
            assert value == pytest.approx(1)
    nothing = text_scores(["no such words here at all"], [[text]])
    assert all(value[0] == 0 for value in nothing.values())


def test_words_are_runs_of_letters_and_digits() -> None:
    assert words_of("Größe: 3-cm_nodule, MAN'S e\u0301tage!") == ["größe", "3", "cm", "nodule", "man", "s", "étage"]


def test_what_cannot_be_compared_is_counted() -> None:
    metrics = text_metrics(["a dog", "...", "a cat", "a cow"], [["a dog"], ["a dog"], [], [None, "?"]], n_boot=0)
    assert (metrics["texts"], metrics["left_out"], metrics["wordless"]) == (2, 2, 1)
    assert metrics["rouge1"]["value"] == 0.5
    scores = text_scores(["a dog", "...", "a cat"], [["a dog"], ["a dog"], []])
    assert scores["rougeL"].tolist()[:2] == [1, 0]
    assert np.isnan(scores["rougeL"][2])


def test_intervals_resample_groups() -> None:
    texts, references = make_texts(40)
    groups = [f"patient {i // 4}" for i in range(40)]
    metrics = text_metrics(texts, references, groups=groups, n_boot=50, seed=3)
    rng = np.random.default_rng(3)
    replicates = []
    for _ in range(50):
        rows = [4 * drawn + i for drawn in rng.integers(0, 10, size=10) for i in range(4)]
        replicates.append(
            text_metrics([texts[i] for i in rows], [references[i] for i in rows], n_boot=0)["bleu4"]["value"]
        )
    low, high = np.percentile(replicates, [2.5, 97.5])
    assert metrics["bleu4"]["low"] == pytest.approx(low)
    assert metrics["bleu4"]["high"] == pytest.approx(high)
    for name in ("bleu4", "rouge1", "rouge2", "rougeL"):
        assert metrics[name]["low"] < metrics[name]["value"] < metrics[name]["high"]
    assert metrics == text_metrics(texts, references, groups=groups, n_boot=50, seed=3)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(HeadError, match="expected references for each of 2, got 1"):
        text_metrics(["a", "b"], [["a"]])
    with pytest.raises(HeadError, match="none has a reference"):
        text_metrics(["a"], [[None]])
