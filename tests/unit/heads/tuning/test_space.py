from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from sklearn.model_selection import ParameterGrid

from data.errors import ConfigError
from heads.errors import HeadError
from heads.search_space import Choice, Range
from heads.tuning.search import candidate_of
from heads.tuning.space import Space, read_space


def space_of(heads, text: str | None = None, tmp_path: Path | None = None, **options) -> Space:
    file = None
    if text is not None:
        file = tmp_path / "space.yaml"
        file.write_text(text)
    given = {"encoders": ("a",), "poolings": (None,), "normalizations": ("none",), "settings": {}} | options
    return read_space(heads, given.pop("kind", "binary"), file=file, **given)


def test_heads_bring_their_own_ranges() -> None:
    space = space_of(("knn", "mlp"))
    assert space.heads["knn"]["k"] == Range(1, 50, log=True)
    assert set(space.heads) == {"knn", "mlp"}


def test_a_file_replaces_the_space_of_a_head(tmp_path) -> None:
    text = """
    svm: {C: [0.1, 1, 10, 100], kernel: [linear, rbf], gamma: [scale, auto, 0.1, 0.01]}
    mlp: {lr: {low: 1e-4, high: 0.01, log: true}, hidden: ["256", [512, 256]], dropout: 0.5}
    """
    space = space_of(("svm", "mlp", "knn"), text, tmp_path)
    assert space.heads["svm"] == {
        "C": Choice((0.1, 1.0, 10.0, 100.0)),
        "kernel": Choice(("linear", "rbf")),
        "gamma": Choice(("scale", "auto", 0.1, 0.01)),
    }
    assert space.heads["mlp"] == {
        "lr": Range(1e-4, 0.01, log=True),
        "hidden": Choice(((256,), (512, 256))),
        "dropout": Choice((0.5,)),
    }
    assert "k" in space.heads["knn"]
    assert space.narrowed == {"svm", "mlp"}
    assert [default["head"] for default in space.defaults()] == ["knn"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("svn: {C: [1]}", "'svn' is no --head; did you mean 'svm'?"),
        ("knn: {k: [1]}", "'knn' is no --head"),
        ("svm: {gama: [1]}", "no parameter 'gama'; did you mean 'gamma'?"),
        ("svm: {C: [-1]}", "C=-1 is wrong; expected a number > 0"),
        ("svm: {C: []}", "expected at least one value"),
        ("svm: {C: {low: 1}}", "'high' is missing"),
        ("svm: {C: {low: 10, high: 1}}", "expected low <= high"),
        ("svm: {C: {low: 1, hgih: 2}}", "unknown key 'hgih'; did you mean 'high'?"),
        ("svm: {C: {low: 1, high: 2, log: 3}}", "log is true or false"),
        ("svm: {kernel: {low: rbf, high: linear}}", "a range needs numbers"),
        ("svm: [C]", "expected parameters and their values"),
    ],
)
def test_a_wrong_file_is_explained(text: str, said: str, tmp_path) -> None:
    with pytest.raises(ConfigError) as error:
        space_of(("svm",), text, tmp_path)
    assert said in str(error.value)
    assert "space.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": "3"}, "say which: knn.k, mlp.k"),
        ({"kn.k": "3"}, "'kn' is no --head; did you mean 'knn'?"),
        ({"knn.kk": "3"}, "no parameter 'kk'; did you mean 'k'?"),
    ],
)
def test_wrong_settings_are_explained(settings, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        space_of(("knn", "mlp"), settings=settings)
    assert said in str(error.value)


def test_a_setting_is_not_searched(tmp_path) -> None:
    space = space_of(("knn", "mlp"), settings={"knn.k": "3", "mlp.members": "2"})
    assert "k" not in space.heads["knn"]
    assert space.fixed == {"knn": {"k": 3}, "mlp": {"members": 2}}
    assert space.default("knn").params == {"k": 3}
    with pytest.raises(ConfigError, match="choose either"):
        space_of(("knn",), "knn: {k: [1, 2]}", tmp_path, settings={"k": "3"})


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ConfigError, match="named twice"):
        space_of(("knn", "knn"))
    with pytest.raises(ConfigError, match="at most 6"):
        space_of(("knn",), encoders=tuple("abcdefg"))
    with pytest.raises(HeadError, match="did you mean 'knn'"):
        space_of(("kn",))


def test_trials_stay_inside_and_can_be_read_back() -> None:
    space = space_of(
        ("knn", "mlp"), encoders=("a", "b", "c"), poolings=("cls", "mean"), normalizations=("none", "l2"),
        settings={"mlp.dropout": "0.25"},
    )  # fmt: skip
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    subsets = set()
    for _ in range(200):
        trial = study.ask()
        candidate = space.suggest(trial)
        study.tell(trial, 0.0)
        subsets.add(candidate.view.encoders)
        if candidate.head == "knn":
            assert isinstance(candidate.params["k"], int)
            assert 1 <= candidate.params["k"] <= 50
        else:
            assert candidate.params["dropout"] == 0.25
            assert candidate.params["hidden"] in space.heads["mlp"]["hidden"].options
        assert candidate_of(study.trials[-1], space) == candidate
    assert subsets == {("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")}


def test_a_default_trial_keeps_the_defaults() -> None:
    space = space_of(("knn", "mlp"), encoders=("a", "b"), normalizations=("none", "l2"))
    study = optuna.create_study()
    for params in space.defaults():
        study.enqueue_trial(params, user_attrs={"default": True})
    for head in ("knn", "mlp"):
        candidate = space.suggest(study.ask())
        assert candidate == space.default(head)
        assert candidate.view.encoders == ("a", "b")
        assert candidate.view.normalize == "none"


def test_a_grid_has_the_order_of_scikit_learn(tmp_path) -> None:
    text = "svm: {C: [0.1, 1, 10, 100], kernel: [linear, rbf], gamma: [scale, auto, 0.1, 0.01]}"
    points = space_of(("svm",), text, tmp_path).grid()
    expected = ParameterGrid(
        {"C": [0.1, 1.0, 10.0, 100.0], "kernel": ["linear", "rbf"], "gamma": ["scale", "auto", 0.1, 0.01]}
    )
    found = [
        {name.removeprefix("svm."): value for name, value in point.items() if name.startswith("svm.")}
        for point in points
    ]
    assert found == list(expected)


def test_a_grid_is_the_product_with_the_features_and_has_no_ranges(tmp_path) -> None:
    options = {"encoders": ("a", "b"), "normalizations": ("none", "l2")}
    points = space_of(("knn",), "knn: {k: [1, 5], metric: cosine}", tmp_path, **options).grid()
    assert len(points) == 3 * 2 * 2
    assert len({tuple(point.items()) for point in points}) == len(points)
    assert space_of(("knn",), **options).grid() is None
