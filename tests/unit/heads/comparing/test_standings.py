"""Standings: which cells differ, adjusted in which family, and who is ranked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, roc_auc_score

from data.task import Task
from heads.comparing.cells import joint_groups
from heads.comparing.ranks import common_blocks, mean_ranks, ranks_of
from heads.comparing.standings import Entry, Standing, mean_of, run_tests
from heads.comparing.suite import Cell
from heads.config import FitConfig
from heads.evaluation.bootstrap import Bootstrap, Series
from heads.evaluation.metrics import replicates
from heads.evaluation.paired import delong, mcnemar, paired_difference
from heads.evaluation.predictions import Predictions

TASK = Task(kind="binary", targets=("label",), classes=("no", "yes"))
N = 160


def cell_of(head: str, prompts: str = "none", **roles: bool) -> Cell:
    values = {
        "manifest": "m.csv",
        "store": "s",
        "encoder": ("a",),
        "target": ("label",),
        "out": "o",
        "head": head,
        "prompt_encoder": "t",
        "prompt_control": prompts,
    }
    label = head if prompts == "none" else f"{head}, {prompts} prompts"
    return Cell(data="d", encoder="a", head=label, config=FitConfig.build(values, where="a test"), **roles)


@pytest.fixture
def truth() -> tuple[Any, Any, Bootstrap]:
    """Labels, groups and the resamples of all cells."""
    rng = np.random.default_rng(0)
    y, groups = rng.integers(0, 2, N), np.repeat(np.arange(N // 4), 4)
    return y, groups, Bootstrap.of(N, groups, n_boot=200, seed=0, level=0.95)


def entry_of(cell: Cell, signal: float, truth: tuple[Any, Any, Bootstrap], seed: int) -> Entry:
    y, groups, plan = truth
    scores = 1 / (1 + np.exp(-(signal * (2 * y - 1) + np.random.default_rng(seed).normal(size=N))))
    series = replicates("binary", y, scores, plan, classes=TASK.classes, thresholds=[0.5])
    record = SimpleNamespace(thresholds={"yes": {"value": 0.5}}, timings={"fit_seconds": 1}, head={"n_parameters": 3})
    return Entry(
        cell=cell,
        runs=(Path("run"),),
        records=(record,),  # type: ignore[arg-type]
        series=series,
        metrics=plan.estimate_all(series),
        first=Predictions(
            task=TASK,
            ids=tuple(map(str, range(len(y)))),
            groups=tuple(map(str, groups)),
            y=y.astype(float),
            scores=scores,
        ),
    )


def test_pairs_of_contenders_are_a_family_and_controls_another(truth) -> None:
    entries = [
        entry_of(cell_of("prior", baseline=True), 0.0, truth, 9),
        entry_of(cell_of("linear"), 1.0, truth, 1),
        entry_of(cell_of("mlp"), 0.4, truth, 2),
        entry_of(cell_of("prompt_similarity"), 0.8, truth, 3),
        entry_of(cell_of("prompt_similarity", "zero", control=True), 0.7, truth, 4),
        entry_of(cell_of("prompt_similarity", "shuffled", control=True), 0.6, truth, 5),
    ]
    tests = run_tests(TASK, entries, ("roc_auc", "f1"))
    y, groups, _ = truth
    families: dict[tuple[str, str, bool], list[Any]] = {}
    for test in tests:
        families.setdefault((test.test, test.metric, test.b.cell.control), []).append(test)
    kinds = [("bootstrap", "roc_auc"), ("bootstrap", "f1"), ("delong", "roc_auc"), ("mcnemar", "accuracy")]
    assert set(families) == {(*kind, control) for kind in kinds for control in (False, True)}
    for (_, _, control), members in families.items():
        pairs = [(test.a.cell.head, test.b.cell.head) for test in members]
        real = "prompt_similarity"
        assert pairs == (
            [(real, f"{real}, zero prompts"), (real, f"{real}, shuffled prompts")]
            if control
            else [("linear", "mlp"), ("linear", real), ("mlp", real)]
        )
        # Holm by hand: the smallest p times the number of tests, the next times one less, never decreasing.
        p = np.array([test.p for test in members])
        order, expected, highest = np.argsort(p), np.empty(len(p)), 0.0
        for rank, i in enumerate(order):
            highest = max(highest, min(1.0, p[i] * (len(p) - rank)))
            expected[i] = highest
        np.testing.assert_allclose([test.p_holm for test in members], expected)
    for test in tests:
        a, b = test.a.first.scores, test.b.first.scores
        if test.test == "bootstrap":
            found = paired_difference("binary", y, a, b, metric=test.metric, groups=groups, n_boot=200, seed=0)
            assert (test.difference, test.low, test.high, test.p) == pytest.approx(found)
        elif test.test == "delong":
            assert test.difference == pytest.approx(roc_auc_score(y, a) - roc_auc_score(y, b))
            assert test.p == delong(y, a, b).p
        else:
            right_a, right_b = (a >= 0.5) == y, (b >= 0.5) == y
            assert test.difference == pytest.approx(accuracy_score(y, a >= 0.5) - accuracy_score(y, b >= 0.5))
            assert test.p == mcnemar(right_a, right_b).p


def test_the_best_and_what_cannot_be_told_from_it(truth) -> None:
    entries = [
        entry_of(cell_of("prior", baseline=True), 9.0, truth, 9),
        entry_of(cell_of("linear"), 1.0, truth, 4),
        entry_of(cell_of("knn"), 1.1, truth, 6),
        entry_of(cell_of("mlp"), 0.0, truth, 2),
        entry_of(cell_of("linear", "zero", control=True), 1.0, truth, 4),
    ]
    standing = Standing(
        name="d",
        data=SimpleNamespace(task=TASK),  # type: ignore[arg-type]
        rows=np.arange(N),
        judge="cv",
        names=("roc_auc",),
        entries=tuple(entries),
        tests=run_tests(TASK, entries, ("roc_auc",)),
    )
    assert standing.best("roc_auc") is entries[1]
    assert standing.level("roc_auc") == {entries[2]}
    assert standing.ordered()[0] is entries[0]
    assert [entry.contends for entry in entries] == [False, True, True, True, False]


def test_the_mean_of_repeats_is_undefined_where_one_is() -> None:
    one = Series(np.array([0.5, np.nan, 0.2]), "why", np.array([False, True, False]))
    other = Series(np.array([0.7, 0.3, 0.4]), "why", np.array([False, False, True]))
    mean = mean_of([one, other])
    np.testing.assert_allclose(mean.values, [0.6, np.nan, 0.3])
    assert mean.partial is not None
    assert mean.partial.tolist() == [False, True, True]


def test_ranks_share_ties_and_leave_out_the_undefined() -> None:
    values = [0.9, np.nan, 0.7, 0.9]
    np.testing.assert_equal(ranks_of(values), [1.5, np.nan, 3, 1.5])
    np.testing.assert_equal(ranks_of(values, lower_is_better=True), [2.5, np.nan, 1, 2.5])


def test_mean_ranks_are_those_of_each_block() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 4))
    blocks = {i: dict(zip("abcd", row, strict=True)) for i, row in enumerate(table)}
    means = {each.name: each.mean for each in mean_ranks(blocks)}
    expected = np.mean([rankdata(-row) for row in table], axis=0)
    assert means == pytest.approx(dict(zip("abcd", expected, strict=True)))
    assert common_blocks(mean_ranks(blocks))
    del blocks[0]["a"]
    blocks[9] = {"a": 1.0}  # alone in its block
    found = {each.name: each for each in mean_ranks(blocks)}
    assert set(found["a"].ranks) == {1, 2, 3, 4}
    assert not common_blocks(list(found.values()))


@pytest.mark.parametrize("seed", range(5))
def test_joint_groups_are_the_finest_that_keep_all_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    views = [rng.integers(0, 25, 30) for _ in range(3)]
    together = np.eye(30, dtype=bool)
    for view in views:
        together |= view[:, None] == view[None, :]
    for _ in range(30):  # transitive closure
        together = together @ together
    found = joint_groups(views)
    assert ((found[:, None] == found[None, :]) == together).all()
    assert list(dict.fromkeys(found.tolist())) == list(range(found.max() + 1))
