"""The table of objectives: names, settings as text, errors of one line."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from data.errors import ConfigError, FrostlineError
from data.task import Task
from finetune.registry import list_objectives, make_objective, objective_class, settings_of, split_settings


def test_the_objectives_of_pairs_and_targets_are_there() -> None:
    assert {"classification", "contrastive", "sigmoid", "triplet"} <= set(list_objectives())
    for name in list_objectives():
        assert objective_class(name).name == name
        assert objective_class(name).needs


def test_text_is_read_as_the_type_that_is_asked_for() -> None:
    made = make_objective("contrastive", {"temperature": "0.0588", "duplicates": "negatives"}, dim=3)
    assert made.measures() == {"temperature": pytest.approx(0.0588)}
    task = Task(kind="multiclass", targets=("label",), classes=("a", "b", "c"))
    made = make_objective(
        "classification",
        {"hidden": "8,4", "class_weight": "none", "dropout": "0.2"},
        task=task,
        dim=5,
        targets=np.array([0, 1, 2]),
    )
    assert [tuple(each.shape) for each in made.parameters()] == [(8, 5), (8,), (4, 8), (4,), (3, 4), (3,)]


def test_settings_are_what_has_a_default() -> None:
    assert {"temperature", "bias", "max_scale"} < set(settings_of("sigmoid"))
    assert settings_of("sigmoid")["clamp"] == "a number > 0 or none [default: none]"
    assert settings_of("triplet")["negative"] == "'roll' or 'random' or 'hardest' [default: roll]"
    assert "task" not in settings_of("classification")
    assert "hidden" in settings_of("classification")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("contrastve", {}, "no objective 'contrastve'; did you mean 'contrastive'?"),
        ("contrastive", {"temprature": 1}, "contrastive: no setting 'temprature'; did you mean 'temperature'?"),
        ("contrastive", {"temperature": "warm"}, "contrastive: temperature='warm' is wrong; expected a number > 0"),
        ("contrastive", {"temperature": 0}, "contrastive: temperature=0 is wrong; expected a number > 0"),
        ("triplet", {"negative": "easy"}, "triplet: negative='easy' is wrong; expected 'roll' or 'random' or"),
        ("classification", {"task": "x"}, "classification: no setting 'task'; "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(FrostlineError) as caught:
        make_objective(name, settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_dotted_settings_go_to_their_objective() -> None:
    names = ("contrastive", "classification")
    settings = {"contrastive.temperature": "0.1", "classification.dropout": "0.5"}
    assert split_settings(settings, names) == {
        "contrastive": {"temperature": "0.1"},
        "classification": {"dropout": "0.5"},
    }
    for key in ("temperature", "sigmoid.bias"):
        with pytest.raises(ConfigError, match=f"--set {key}: expected objective.setting=value"):
            split_settings({key: "1"}, names)


def test_listing_imports_no_torch() -> None:
    code = "import sys, finetune.registry as r; r.list_objectives(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
