from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from data.errors import ConfigError
from data.progress import Silent
from data.task import Task
from heads.context import Context
from heads.errors import HeadError
from heads.search_space import Choice, Range
from heads.tuning import search as searching
from heads.tuning.rows import inner_folds
from heads.tuning.search import Plan, best_trial, candidate_of, search
from heads.tuning.space import DEFAULT, GRID, Space
from heads.tuning.storage import open_study

FOLDS = 4


def samples(n: int = 160, classes: int = 2, seed: int = 0) -> Any:
    """Return labelled data of overlapping classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    X = (rng.normal(size=(n, 12)) + 0.8 * np.eye(classes, 12)[y]).astype(np.float32)
    names = tuple("abcdef"[:classes])
    return SimpleNamespace(
        X=X,
        y=y,
        groups=np.arange(n),
        context=Context(blocks=(12,)),
        views=None,
        task=Task(kind="binary" if classes == 2 else "multiclass", targets=("label",), classes=names),
        rows=lambda split: np.arange(n) if split == "train" else np.arange(0),
    )


def plan_of(data: Any, heads: dict[str, Any], **options: Any) -> Plan:
    space = Space(
        heads=heads,
        fixed={head: {} for head in heads},
        narrowed=frozenset(),
        encoders=("a",),
        poolings=(None,),
        normalizations=("none",),
    )
    settings = {
        "metric": "roc_auc",
        "trials": 12,
        "deadline": math.inf,
        "batch": 6,
        "sampler": "tpe",
        "prune": True,
        "seed": 0,
        "min_positives": 1,
    } | options
    return Plan(
        space=space, views=SimpleNamespace(of=lambda view: data), folds=inner_folds(data, FOLDS, 0), **settings
    )  # fmt: skip


KNN = {"knn": {"k": Range(1, 40, log=True), "metric": Choice(("cosine", "euclidean"))}}


@pytest.fixture
def run(tmp_path):
    """Run a plan on a study in a journal, and return its trials."""

    def run_plan(plan: Plan, name: str = "one", planned: list[dict[str, Any]] | None = None, mark: str = DEFAULT):
        if planned is None:
            planned = list(plan.space.defaults())
        with open_study(
            str(tmp_path / f"{name}.journal"),
            "tune",
            direction="maximize",
            identity={"metric": plan.metric},
            planned=planned,
            mark=mark,
        ) as study:
            search(study, plan, Silent())
            return study.get_trials(deepcopy=False)

    return run_plan


@pytest.fixture
def fitted(monkeypatch) -> list[int]:
    """The number of fits of every call of `fit_on`."""
    calls: list[int] = []
    real = searching.fit_on

    def counting(data, jobs):
        calls.append(len(jobs))
        return real(data, jobs)

    monkeypatch.setattr(searching, "fit_on", counting)
    return calls


@pytest.mark.parametrize(("classes", "metric", "scoring"), [(2, "roc_auc", "roc_auc"), (3, "accuracy", "accuracy")])
def test_a_grid_finds_what_scikit_learn_finds(run, classes: int, metric: str, scoring: str) -> None:
    data = samples(classes=classes)
    plan = plan_of(
        data,
        {
            "knn": {
                "k": Choice((1, 3, 5, 9, 15, 25)),
                "metric": Choice(("cosine", "euclidean")),
                "weights": Choice(("uniform",)),
            }
        },
        metric=metric,
        trials=100,
        sampler="grid",
        prune=False,
    )
    trials = run(plan, planned=plan.space.grid(), mark=GRID)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 12
    fold = np.empty(len(data.y), int)
    for k, each in enumerate(plan.folds):
        fold[each.score] = k
    theirs = GridSearchCV(
        make_pipeline(StandardScaler(), KNeighborsClassifier()),
        {"kneighborsclassifier__metric": ["cosine", "euclidean"],
         "kneighborsclassifier__n_neighbors": [1, 3, 5, 9, 15, 25]},
        cv=PredefinedSplit(fold),
        scoring=scoring,
    ).fit(data.X.astype(np.float64), data.y)  # fmt: skip
    best = candidate_of(best_trial(trials, 1), plan.space).params
    assert {best["metric"], best["k"]} == set(theirs.best_params_.values())
    assert best_trial(trials, 1).value == pytest.approx(theirs.best_score_, abs=1e-9)


def test_the_svm_grid_of_the_literature_finds_what_scikit_learn_finds(run) -> None:
    """C, kernel and gamma, ranked by the area under the curve, which calibration leaves as it is."""
    data = samples(120)
    grid = {"C": [0.1, 1.0, 10.0, 100.0], "gamma": ["scale", "auto", 0.1, 0.01], "kernel": ["linear", "rbf"]}
    plan = plan_of(
        data,
        {"svm": {name: Choice(tuple(values)) for name, values in grid.items()}},
        trials=100,
        batch=32,
        sampler="grid",
        prune=False,
    )
    trials = run(plan, planned=plan.space.grid(), mark=GRID)
    fold = np.empty(len(data.y), int)
    for k, each in enumerate(plan.folds):
        fold[each.score] = k
    theirs = GridSearchCV(
        make_pipeline(StandardScaler(), SVC()),
        {f"svc__{name}": values for name, values in grid.items()},
        cv=PredefinedSplit(fold),
        scoring="roc_auc",
    ).fit(data.X.astype(np.float64), data.y)
    best = candidate_of(best_trial(trials, 1), plan.space).params
    assert best == {name.removeprefix("svc__"): value for name, value in theirs.best_params_.items()}
    ours = [trial.value for trial in trials]
    np.testing.assert_allclose(ours, theirs.cv_results_["mean_test_score"], atol=2e-3)


def test_the_same_seed_finds_the_same(run) -> None:
    plan = plan_of(samples(), KNN)
    first, second = run(plan, "one"), run(plan, "two")
    assert [trial.params for trial in first] == [trial.params for trial in second]
    assert [trial.value for trial in first] == [trial.value for trial in second]
    other = run(plan_of(samples(), KNN, seed=1), "three")
    assert [trial.params for trial in first] != [trial.params for trial in other]


def test_half_of_a_batch_is_dropped_after_the_first_and_the_second_fold(run, fitted) -> None:
    plan = plan_of(samples(), KNN, trials=8, batch=8)
    trials = run(plan)
    assert fitted[0] == 8
    assert fitted[1] in (4, 5)  # the default goes on wherever it stands
    folds = sorted(len(trial.user_attrs["scores"]) for trial in trials)
    assert folds.count(FOLDS) == sum(trial.state == TrialState.COMPLETE for trial in trials)
    assert sum(fitted) == sum(folds) < 8 * FOLDS
    default = next(trial for trial in trials if trial.user_attrs.get(DEFAULT))
    assert default.state == TrialState.COMPLETE
    for trial in trials:
        scores = trial.user_attrs["scores"]
        assert trial.value == pytest.approx(np.mean(scores))
        assert trial.intermediate_values == pytest.approx(
            {k + 1: np.mean(scores[: k + 1]) for k in range(len(scores))}
        )  # fmt: skip


def test_a_study_goes_on_and_fits_nothing_twice(run, fitted) -> None:
    data = samples()
    whole = run(plan_of(data, KNN, trials=12), "whole")
    fitted.clear()
    run(plan_of(data, KNN, trials=6), "parts")
    first = sum(fitted)
    trials = run(plan_of(data, KNN, trials=12), "parts")
    second = sum(fitted) - first
    assert [(trial.params, trial.value) for trial in trials] == [(trial.params, trial.value) for trial in whole]
    assert 0 < second <= 6 * FOLDS
    fitted.clear()
    assert len(run(plan_of(data, KNN, trials=12), "parts")) == 12
    assert fitted == []


def test_trials_of_a_process_that_died_do_not_count(run, tmp_path) -> None:
    data = samples()
    run(plan_of(data, KNN, trials=6))
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "one.journal"))
    study = optuna.load_study(storage=optuna.storages.JournalStorage(backend), study_name="tune")
    dead = study.ask()
    trials = run(plan_of(data, KNN, trials=12))
    assert trials[dead.number].state == TrialState.FAIL
    assert sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials) == 12


def test_two_at_once_share_a_study_and_draw_different_trials(tmp_path) -> None:
    plan = plan_of(samples(), KNN)
    options = {"direction": "maximize", "identity": {}, "planned": [], "mark": DEFAULT}
    drawn = []
    with (
        open_study(str(tmp_path / "j"), "tune", **options) as one,
        open_study(str(tmp_path / "j"), "tune", **options) as two,
    ):
        for study in (one, two):
            study.sampler = searching.NumberedSampler("tpe", 0)
        for study in (one, two, one, two):
            drawn.append(plan.space.suggest(study.ask()).key)
        # Neither took the other's trials for those of a dead process.
        assert [trial.state for trial in two.get_trials(deepcopy=False)] == [TrialState.RUNNING] * 4
    assert len(set(drawn)) == 4


def test_equal_configurations_are_fitted_once(run, fitted) -> None:
    plan = plan_of(samples(), {"knn": {"k": Choice((1, 5))}}, trials=20, batch=4)
    trials = run(plan)
    values = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            values.setdefault(trial.params.get("knn.k"), set()).add(trial.value)
    assert all(len(each) == 1 for each in values.values())
    assert sum(fitted) < 12 * FOLDS


def test_a_trial_that_cannot_be_fitted_keeps_its_reason(run) -> None:
    plan = plan_of(samples(), {"knn": {"k": Choice((5, 1000))}}, trials=2, sampler="grid", prune=False)
    head = searching.head_class("knn", "binary")
    real = head._fit

    def failing(self, training):
        if self.k == 1000:
            raise HeadError("knn: no 1000 neighbours")
        real(self, training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "_fit", failing)
        trials = run(plan, planned=plan.space.grid(), mark=GRID)
        assert trials[0].state == TrialState.COMPLETE
        assert (trials[1].state, trials[1].value) == (TrialState.PRUNED, None)
        assert trials[1].user_attrs["reason"] == "knn: no 1000 neighbours"
        only = plan_of(samples(), {"knn": {"k": Choice((1000,))}}, trials=3, prune=True)
        with pytest.raises(HeadError, match="all 3 trials failed; the first: knn: no 1000 neighbours"):
            run(only, "other", planned=[])


def test_the_search_stops_at_its_deadline(run) -> None:
    trials = run(plan_of(samples(), KNN, deadline=time.monotonic()))
    assert all(trial.state == TrialState.WAITING for trial in trials)
    with pytest.raises(HeadError, match="raise --timeout"):
        best_trial([], 1)


def test_a_deadline_within_a_batch_leaves_no_half_trial(run, monkeypatch) -> None:
    plan = plan_of(samples(), KNN, trials=12, batch=4, deadline=time.monotonic() + 1e6)
    clock = iter([*[0.0] * 12, *[2e9] * 1000])
    monkeypatch.setattr(searching.time, "monotonic", lambda: next(clock))
    trials = run(plan)
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert any(trial.state == TrialState.FAIL for trial in trials)


def test_a_study_about_something_else_is_refused(run, tmp_path) -> None:
    run(plan_of(samples(), KNN, trials=4))
    with pytest.raises(ConfigError, match="was made with other metric"):
        run(plan_of(samples(), KNN, trials=4, metric="average_precision"))


def test_what_is_no_storage_is_refused(tmp_path) -> None:
    (tmp_path / "text").write_text("no journal\n")
    options = {"direction": "maximize", "identity": {}, "planned": [], "mark": DEFAULT}
    for storage, said in (
        (str(tmp_path / "text"), "is not the journal of a study"),
        (str(tmp_path), "cannot be written"),
        ("nosuchdb://here", "the database cannot be used"),
        (f"sqlite:///{tmp_path}/no/such/folder.db", "the database cannot be used"),
    ):
        with pytest.raises(ConfigError, match=said), open_study(storage, "tune", **options):
            pass


def test_a_database_holds_a_study_as_well(tmp_path) -> None:
    plan = plan_of(samples(), KNN, trials=6)
    storage = f"sqlite:///{tmp_path}/study.db"
    values = []
    for _ in range(2):
        with open_study(
            storage, "tune", direction="maximize", identity={}, planned=list(plan.space.defaults()), mark=DEFAULT
        ) as study:
            search(study, plan, Silent())
            values.append([trial.value for trial in study.get_trials(deepcopy=False)])
    assert len(values[0]) == 6
    assert values[0] == values[1]


def test_members_are_fewer_in_trials_unless_they_are_asked_for() -> None:
    space = plan_of(samples(), {"mlp": {}}).space
    assert searching.trial_head(space.default("mlp"), "binary", 0).members == searching.MEMBERS
    fixed = Space(
        heads={"mlp": {}}, fixed={"mlp": {"members": 3}}, narrowed=frozenset(), encoders=("a",), poolings=(None,),
        normalizations=("none",),
    )  # fmt: skip
    assert searching.trial_head(fixed.default("mlp"), "binary", 0).members == 3
