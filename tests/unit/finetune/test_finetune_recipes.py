"""The recipes of fine-tuning are read strictly, name what there is and say what their sources say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import read_yaml
from data.errors import ConfigError
from data.task import Task
from featurestore.catalog import canonical
from finetune.config import FinetuneConfig
from finetune.objectives.classification import Classification
from finetune.objectives.weighted import parse_weight
from finetune.options import check_options
from finetune.registry import make_objective, objective_class, split_settings
from finetune.schedules import lr_factor
from finetune.unfreeze import Policy
from heads.params import parse_params

RECIPES = Path(__file__).resolve().parents[3] / "docs" / "recipes" / "finetune"
FILES = sorted(RECIPES.glob("*.yaml"))


def read(path: Path, **more: Any) -> FinetuneConfig:
    return FinetuneConfig.build({"manifest": "m.csv", "out": "out", **read_yaml(path), **more}, where=path.name)


def recipe(name: str) -> FinetuneConfig:
    return read(RECIPES / f"{name}.yaml")


def settings(config: FinetuneConfig, objective: str) -> dict[str, Any]:
    return parse_params(objective_class(objective), split_settings(config.set, config.objective)[objective])


def test_there_are_recipes() -> None:
    assert len(FILES) == 7


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_options_fit_each_other_and_its_ids_are_whole(path: Path) -> None:
    config = read(path)
    check_options(config)
    ids = [config.encoder, *([config.text_encoder] if config.text_encoder else [])]
    assert [canonical(each) for each in ids] == ids
    for objective in config.objective:
        assert settings(config, objective).keys() == split_settings(config.set, config.objective)[objective].keys()
    assert set(config.weight) <= set(config.objective)
    # A shared image is kept out of the test rows by groups; sentences have none.
    assert config.split
    assert config.group or path.stem == "film_reviews"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_comment_names_its_columns_and_its_own_path(path: Path) -> None:
    comment = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    config = read(path)
    (columns,) = re.findall(r"one row per \w+:  (\S+)", comment)
    wanted = {config.input, config.text, config.split, config.group, config.bag, *config.target} - {None}
    assert wanted <= set(columns.split(","))
    assert f"docs/recipes/finetune/{path.name}" in comment


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_unknown_key_is_an_error(path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'unfreze'"):
        read(path, unfreze="all")


@pytest.mark.parametrize(
    ("name", "policy", "rates", "batch", "losses"),
    [
        ("dementia_readme", ("gradual", 8, 2), (5e-4, 0.025), 32, (2.0, 0.1)),
        ("dementia_head", ("gradual", 10, 1), (2e-4, 0.02), 16, (1.0, 0.0)),
    ],
)
def test_dementia_has_the_values_of_its_readme_and_of_its_code(
    name: str, policy: tuple[str, int, int], rates: tuple[float, float], batch: int, losses: tuple[float, float]
) -> None:
    config = recipe(name)
    found = Policy.parse(config.unfreeze)
    assert (found.kind, found.frozen_epochs, found.blocks) == policy
    assert (config.lr, config.encoder_lr) == rates
    assert config.batch_size == batch
    task = Task(kind="binary", targets=("label",), classes=("no", "yes"))
    given = {"task": task, "dim": 512, "targets": np.array([0.0, 1.0, 1.0])}
    made = make_objective("classification", split_settings(config.set, config.objective)["classification"], **given)
    assert isinstance(made, Classification)
    assert (made.focal_gamma, made.label_smoothing) == losses
    assert made.balanced
    # Four epochs of 40 go up, and the last ends at a twentieth.
    warmup = round(config.warmup * 400)
    factors = [lr_factor(config.schedule, step, total=400, warmup=warmup, floor=config.lr_floor) for step in range(400)]
    assert warmup == 40
    assert factors[40] == 1
    assert factors[-1] == pytest.approx(0.05, abs=1e-4)


def test_brain_mri_trains_all_of_clip_at_one_constant_rate() -> None:
    config = recipe("brain_mri_captions")
    assert config.encoder == config.text_encoder
    assert (config.unfreeze, config.lr * config.encoder_lr, config.batch_size, config.epochs) == ("all", 5e-5, 8, 2)
    assert [lr_factor(config.schedule, step, total=9, warmup=0, floor=0.0) for step in range(9)] == [1.0] * 9
    assert settings(config, "contrastive") == {"temperature": 0.01}


def test_radiology_freezes_images_trains_texts_and_takes_the_margin_of_torch() -> None:
    config = recipe("radiology_captions")
    assert (config.unfreeze, config.text_unfreeze, config.epochs) == ("none", "all", 3)
    assert settings(config, "triplet") == {"margin": 1.0, "negative": "roll", "distance": "l2"}


def test_film_reviews_have_the_head_of_distilbert_and_a_hundred_steps_of_warm_up() -> None:
    config = recipe("film_reviews")
    assert settings(config, "classification") == {"hidden": (768,), "dropout": 0.2}
    assert round(config.warmup * 2 * -(-8530 // 16)) == 100
    assert (config.lr, config.encoder_lr, config.batch_size, config.epochs) == (2e-5, 1, 16, 2)
    assert (config.choose, config.judge_every, config.seed, config.clip_norm) == ("accuracy", 50, 42, 1)


def test_angiograms_train_the_upper_eighth_and_weigh_three_losses() -> None:
    aligned, multitask = recipe("angiograms_contrastive"), recipe("angiograms_multitask")
    for config in (aligned, multitask):
        assert config.text_unfreeze is not None
        assert Policy.parse(config.unfreeze).as_last(16) == 2
        assert Policy.parse(config.text_unfreeze).as_last(12) == 1
        assert config.text_lr is not None
        assert config.lr * config.text_lr == pytest.approx(2e-5, rel=1e-3)
        assert settings(config, "contrastive") == {"temperature": 0.0588}
    assert (aligned.bag, aligned.aggregate, aligned.max_views) == ("StudyInstanceUID", "transformer:2:8", 10)
    assert (aligned.single_view, aligned.view_dropout, aligned.consistency) == (0.3, 0.3, 0.2)
    weights = {name: parse_weight(name, each) for name, each in multitask.weight.items()}
    assert set(weights) == {"contrastive", "captioning", "masked"}
    assert settings(multitask, "masked")["share"] == 0.75
    assert settings(multitask, "captioning")["label_smoothing"] == 0.1
