from __future__ import annotations

from pathlib import Path

import pytest

from data.config import read_yaml
from data.errors import ConfigError
from featurestore.config import ExtractConfig
from heads.config import FitConfig

FIT = {"manifest": "m.csv", "store": "s", "encoder": "offline:minilm", "target": "a,b", "out": "run"}


def test_values_of_every_origin_meet_in_one_typed_object() -> None:
    config = FitConfig.build({**FIT, "set": ["C=0.1", "penalty = l2"], "min-positives": "3"}, where="test")
    assert config.target == ("a", "b")
    assert config.encoder == ("offline:minilm",)
    assert config.set == {"C": "0.1", "penalty": "l2"}
    assert config.min_positives == 3


def test_a_configuration_survives_being_written_and_read_back() -> None:
    config = FitConfig.build({**FIT, "set": {"C": 0.1}, "folds": 3}, where="test")
    assert FitConfig.build(config.to_dict(), where="test") == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold": 5}, "unknown key 'fold'; did you mean 'folds'?"),
        ({"folds": "five"}, "--folds: expected a whole number, found 'five'"),
        ({"folds": 1}, "--folds: expected greater than or equal to 2, found 1"),
        ({"kind": "binry"}, "--kind: expected 'auto', 'binary'.*found 'binry'"),
        ({"set": ["C"]}, "--set: expected key=value, such as C=0.1, found 'C'$"),
        ({"target": None}, "--target: expected .*found None"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        FitConfig.build({**FIT, **change}, where="run.yaml")
    assert str(error.value).startswith("run.yaml: ")
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match="--store is required"):
        ExtractConfig.build({"manifest": "m.csv"}, where="frostline extract")


def test_batch_size_is_auto_or_a_number() -> None:
    assert ExtractConfig.build({"manifest": "m", "store": "s", "batch_size": "8"}, where="").batch_size == 8
    with pytest.raises(ConfigError, match=r"--batch-size: expected 'auto' or a whole number, found 'many'"):
        ExtractConfig.build({"manifest": "m", "store": "s", "batch_size": "many"}, where="")
    with pytest.raises(ConfigError, match=r"--batch-size: expected 'auto' or greater than 0, found '0'"):
        ExtractConfig.build({"manifest": "m", "store": "s", "batch_size": "0"}, where="")


def test_an_argument_without_a_flag_is_named_as_it_is() -> None:
    with pytest.raises(ConfigError, match=r"^frostline extract: manifest is required$"):
        ExtractConfig.build({"store": "s"}, where="frostline extract")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "key 'a' is written twice"),
        ("- a\n- b\n", "expected a mapping of options to values, found list"),
        ("a: [1", "not a YAML file"),
        ("a: !!python/object/apply:os.system ['true']", "not a YAML file"),
    ],
)
def test_a_bad_configuration_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value)


def test_a_missing_configuration_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_yaml(tmp_path / "absent.yaml")
