"""Plots: the points they are made of, the files they leave, and that nothing stays open."""

from __future__ import annotations

import json
import sys

import matplotlib as mpl
import numpy as np
import pytest
import sklearn.metrics as sk
from PIL import Image

from data.task import Task
from heads.errors import RunError
from heads.evaluation.curves import (
    BAND_GRID,
    Question,
    largest,
    precision_recall_points,
    reliability,
    roc_band,
    roc_points,
)
from heads.pages import plots
from heads.pages.canvas import DPI
from heads.pages.gallery import find_plots, write_plots


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def question(rng, n=120, name="positive", share=0.3, decimals=2):
    truth = rng.random(n) < share
    return Question(name=name, truth=truth, scores=np.round(0.3 * truth + 0.7 * rng.random(n), decimals))


def test_roc_points_equal_scikit_learn(rng):
    q = question(rng)
    false, true, _ = sk.roc_curve(q.truth, q.scores, drop_intermediate=False)
    found = roc_points(q.truth, q.scores)
    np.testing.assert_allclose(found[0], false)
    np.testing.assert_allclose(found[1], true)
    assert np.trapezoid(found[1], found[0]) == pytest.approx(sk.roc_auc_score(q.truth, q.scores))


def test_area_under_the_drawn_precision_steps_is_average_precision(rng):
    q = question(rng)
    recall, precision = precision_recall_points(q.truth, q.scores)
    assert (np.diff(recall) * precision[1:]).sum() == pytest.approx(sk.average_precision_score(q.truth, q.scores))


def test_band_encloses_the_curve(rng):
    q = question(rng, n=400, decimals=6)
    low, high = roc_band(q)
    curve = np.interp(BAND_GRID, *roc_points(q.truth, q.scores))
    assert ((low <= curve + 0.03) & (curve <= high + 0.03)).all()
    assert (high - low).max() > 0.02


def test_reliability_agrees_with_calibration_curve(rng):
    q = question(rng, n=500, decimals=6)
    found = reliability(q.scores, q.truth, bins=10)
    observed, claimed = sk_calibration(q)
    np.testing.assert_allclose(found.observed, observed)
    np.testing.assert_allclose(found.claimed, claimed)
    assert ((found.low <= found.observed + 1e-12) & (found.observed <= found.high + 1e-12)).all()
    assert found.counts.sum() == 500


def sk_calibration(q):
    from sklearn.calibration import calibration_curve

    return calibration_curve(q.truth, q.scores, n_bins=10)


def test_the_largest_questions_are_kept_in_their_own_order(rng):
    few, many, none = question(rng, share=0.1), question(rng, share=0.6), question(rng, share=0.0)
    assert largest([few, many, none], 5) == [few, many]
    assert largest([few, many, none], 1) == [many]


@pytest.mark.parametrize("n", [1, 3, 8], ids=["one curve", "a few curves", "panels"])
@pytest.mark.parametrize("draw", ["roc", "precision_recall", "score_histograms"])
def test_curves_of_any_number_of_classes_are_drawn(rng, tmp_path, draw, n):
    questions = [question(rng, name=f"class {i}") for i in range(n)]
    texts = {q.name: "0.9 [0.8, 1.0]" for q in questions}
    path = tmp_path / "plot.png"
    getattr(plots, draw)(path, questions, *([] if draw == "score_histograms" else [texts]))
    with Image.open(path) as picture:
        width, height = picture.size
        assert np.asarray(picture.convert("L")).std() > 5
    assert 4 * DPI <= width <= 9.4 * DPI
    assert height >= 3 * DPI


@pytest.mark.parametrize("k", [2, 10, 40])
def test_confusion_of_any_size_fits_the_page(rng, tmp_path, k):
    plots.confusion(
        tmp_path / "plot.png", rng.integers(0, 50, (k, k)).tolist(), [f"class number {i}" for i in range(k)]
    )
    with Image.open(tmp_path / "plot.png") as picture:
        assert max(picture.size) <= 9.8 * DPI


def test_names_are_drawn_as_they_are_written(rng, tmp_path):
    """A class may be called like a formula, which must not be read as one."""
    names = ["$\\frac{", "_under", "", "a very long name of a class that goes on"]
    questions = [question(rng, name=name) for name in names]
    plots.roc(tmp_path / "roc.png", questions, dict.fromkeys(names, "$"))
    plots.confusion(tmp_path / "confusion.png", np.eye(4, dtype=int).tolist(), names)
    assert (tmp_path / "roc.png").stat().st_size > 1000


def test_plots_leave_no_global_state(rng, tmp_path):
    before = dict(mpl.rcParams)
    pyplot_was_loaded = "matplotlib.pyplot" in sys.modules
    plots.roc(tmp_path / "roc.png", [question(rng)], {"positive": ""})
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_was_loaded


@pytest.mark.parametrize(
    ("kind", "stems"),
    [
        ("binary", {"roc", "precision-recall", "scores", "confusion", "calibration"}),
        ("multiclass", {"roc", "precision-recall", "scores", "confusion", "calibration", "per-class"}),
        ("multilabel", {"roc", "precision-recall", "scores", "calibration", "per-class"}),
        ("regression", {"regression"}),
    ],
)
def test_a_run_gets_the_plots_of_its_kind_for_every_judged_split(make_run, kind, stems):
    run = make_run(kind, splits=(("cv", 80), ("test", 60)), n_boot=5)
    written = write_plots(run)
    assert {path.name for path in written} == {f"{split}-{stem}.png" for split in ("cv", "test") for stem in stems}
    assert {path.name for path in (run / "plots").iterdir()} == {path.name for path in written}
    found = find_plots(run)
    assert len(found["test"]) == len(stems)
    assert not found["val"]


def test_equal_runs_get_equal_pictures(make_run):
    one, two = (make_run("binary", name=name, splits=(("cv", 60),), n_boot=5) for name in ("a", "b"))
    for first, second in zip(write_plots(one), write_plots(two), strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_learning_curves_are_drawn_from_the_history(make_run):
    run = make_run("regression", splits=(("cv", 60),), n_boot=5)
    (run / "history.json").write_text(
        json.dumps({"train_loss": [1.0, 0.5, 0.4], "monitor_loss": [1.1, None, 0.7], "lr": [0.1, 0.1, 0.1]})
    )
    assert (run / "plots/history.png") in write_plots(run)
    (run / "history.json").write_text("[1, 2]")
    with pytest.raises(RunError, match="expected a mapping"):
        write_plots(run)


@pytest.mark.parametrize(("steps", "said"), [(None, "epoch 3"), ([50, 100, 120], "step 120")])
def test_learning_curves_are_over_epochs_or_steps(tmp_path, monkeypatch, steps, said):
    drawn = []
    monkeypatch.setattr(mpl.axes.Axes, "plot", lambda self, x, y, **named: drawn.append(list(x)))
    monkeypatch.setattr(mpl.axes.Axes, "axvline", lambda self, x, **named: drawn.append(named["label"]))
    monkeypatch.setattr(mpl.axes.Axes, "legend", lambda self, **named: None)
    plots.learning_curves(tmp_path / "losses.png", {"val/loss": [2.0, None, 1.0]}, steps=steps)
    assert drawn == [steps or [1, 2, 3], f"lowest: {said}"]


def test_several_targets_with_gaps_are_drawn(make_run):
    task = Task(kind="regression", targets=("age", "weight"))
    run = make_run("regression", task=task, splits=(("cv", 60),), n_boot=5)
    assert [path.name for path in write_plots(run)] == ["cv-regression.png"]


def test_one_class_in_a_split_draws_what_can_be_drawn(make_run):
    """Ten test samples of a rare class may hold no positive: no curve, but still a confusion matrix."""
    run = make_run("binary", splits=(("cv", 60), ("test", 2)), n_boot=5, seed=4)
    names = {path.name for path in write_plots(run)}
    assert "test-confusion.png" in names
    assert "test-roc.png" not in names
