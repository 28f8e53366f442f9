"""A suite: what its file, its lists and the command line make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from data.errors import ConfigError
from heads.comparing.suite import Omission, Suite, read_suite
from heads.config import CompareConfig
from heads.errors import HeadError

ROOT = Path(__file__).resolve().parents[4]
DATA = {"pictures": {"manifest": "pictures/manifest.csv", "target": "label"}}
SUITES = sorted((ROOT / "benchmarks" / "suites").glob("*.yaml"))


def suite_of(folder: Path, content: dict[str, object], **options: object) -> Suite:
    """Read a suite of some content, with options of the command line."""
    (folder / "suite.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    values = {"manifest": folder / "suite.yaml", "store": "store", "out": "out", **options}
    return read_suite(CompareConfig.build(values, where="the command line"))


def names_of(suite: Suite) -> list[tuple[str, str, str]]:
    return [(cell.data, cell.encoder, cell.head) for cell in suite.cells]


def test_lists_are_crossed_and_the_prior_comes_once_per_data_set(tmp_path) -> None:
    data = {**DATA, "others": {**DATA["pictures"], "heads": ["knn"]}}
    suite = suite_of(tmp_path, {"datasets": data, "encoders": ["a", "b+c"], "heads": ["linear", "mlp"]})
    assert names_of(suite) == [
        ("pictures", "", "prior"),
        *(("pictures", encoder, head) for encoder in ("a", "b+c") for head in ("linear", "mlp")),
        ("others", "", "prior"),
        *(("others", encoder, "knn") for encoder in ("a", "b+c")),
    ]
    assert [cell.baseline for cell in suite.cells] == [True, *[False] * 4, True, False, False]
    assert suite.cells[3].config.encoder == ("b", "c")
    assert suite.cells[0].config.manifest == tmp_path / "pictures" / "manifest.csv"
    assert suite.cells[0].config.store == Path("store")


def test_a_prior_that_is_named_is_not_added_again(tmp_path) -> None:
    content = {"datasets": DATA, "encoders": ["a", "b"], "heads": ["prior", "linear"]}
    for options in ({}, {"no_baselines": True}):
        suite = suite_of(tmp_path, content, **options)
        assert names_of(suite) == [("pictures", "", "prior"), ("pictures", "a", "linear"), ("pictures", "b", "linear")]
        assert not any(cell.baseline for cell in suite.cells)


def test_options_reach_the_cells_that_they_are_for(tmp_path) -> None:
    content = {
        "datasets": {"pictures": {**DATA["pictures"], "group": "patient"}},
        "encoders": ["a", {"name": "unit", "encoder": "a", "normalize": "l2"}],
        "heads": ["linear", {"label": "wide", "head": "mlp", "set": {"hidden": [512]}}],
        "folds": 3,
        "repeats": 2,
    }
    suite = suite_of(tmp_path, content, seed=7)
    by_name = {(cell.encoder, cell.head): cell.config for cell in suite.cells}
    assert by_name["unit", "wide"].normalize == "l2"
    assert by_name["a", "wide"].normalize == "none"
    assert by_name["a", "wide"].set == {"hidden": [512]}
    assert not by_name["a", "linear"].set
    assert {(config.folds, config.seed, config.group) for config in by_name.values()} == {(3, 7, "patient")}
    assert suite.config.repeats == 2


def test_a_data_set_and_an_encoder_may_have_heads_of_their_own(tmp_path) -> None:
    data = {"one": DATA["pictures"], "two": {**DATA["pictures"], "heads": ["knn"]}}
    encoders = ["a", {"encoder": "a+b", "heads": ["linear", "concat_fusion"]}]
    suite = suite_of(tmp_path, {"datasets": data, "encoders": encoders, "heads": ["mlp"], "no_baselines": True})
    joined = [("a+b", "linear"), ("a+b", "concat_fusion")]
    assert names_of(suite) == [
        *(("one", *cell) for cell in [("a", "mlp"), *joined]),
        *(("two", *cell) for cell in [("a", "knn"), *joined]),
    ]
    suite = suite_of(tmp_path, {"datasets": data, "encoders": encoders, "no_baselines": True}, head=("svm",))
    assert {cell.head for cell in suite.cells} == {"svm"}


def test_flags_win_over_the_file(tmp_path) -> None:
    content = {"datasets": DATA, "encoders": ["a"], "heads": ["linear"], "folds": 3}
    suite = suite_of(tmp_path, content, encoder=("b",), head=("knn", "mlp"), folds=4)
    assert names_of(suite)[1:] == [("pictures", "b", "knn"), ("pictures", "b", "mlp")]
    assert suite.cells[0].config.folds == 4


def test_a_manifest_is_a_suite_of_one_data_set(tmp_path) -> None:
    values = {"manifest": tmp_path / "pictures" / "manifest.csv", "encoder": ("a", "b"), "store": "s", "out": "o"}
    suite = read_suite(CompareConfig.build({**values, "target": ("label",)}, where="the command line"))
    assert names_of(suite) == [("pictures", "", "prior"), ("pictures", "a", "linear"), ("pictures", "b", "linear")]
    assert [omission.head for omission in suite.omitted] == ["zero_shot", "zero_shot"]


def test_every_head_that_learns_from_prompts_has_its_controls(tmp_path) -> None:
    content = {
        "datasets": DATA,
        "encoders": ["a"],
        "heads": ["linear", "concat_fusion", {"label": "own", "head": "prompt_similarity", "prompt_control": "zero"}],
        "prompt_encoder": "t",
    }
    suite = suite_of(tmp_path, content)
    assert [(cell.head, cell.config.prompt_control, cell.control) for cell in suite.cells] == [
        ("prior", "none", False),
        ("linear", "none", False),
        ("concat_fusion", "none", False),
        ("concat_fusion, zero prompts", "zero", True),
        ("concat_fusion, shuffled prompts", "shuffled", True),
        ("own", "zero", False),
        ("zero_shot", "none", False),
    ]
    real, *controls = (cell for cell in suite.cells if cell.head.startswith("concat_fusion"))
    assert {control.family for control in controls} == {real.family}
    assert suite.cells[1].config.prompt_encoder is None
    assert not any(cell.control for cell in suite_of(tmp_path, content, no_controls=True).cells)
    assert not suite.omitted


def test_a_baseline_that_cannot_be_had_is_said(tmp_path) -> None:
    suite = suite_of(tmp_path, {"datasets": DATA, "encoders": ["a"]})
    reason = "there are no prompts to compare with; add prompt_encoder"
    assert suite.omitted == (Omission(data="pictures", encoder="a", head="zero_shot", reason=reason),)
    assert not suite_of(tmp_path, {"datasets": DATA, "encoders": ["a"]}, no_baselines=True).omitted


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"encoders": ["a"]}, "expected the key 'datasets'"),
        ({"datasets": ["x"], "encoders": ["a"]}, "datasets: expected a mapping, found ['x']"),
        ({"datasets": DATA}, "pictures: no encoder is named"),
        ({"datasets": DATA, "encoders": ["a"], "headz": []}, "headz"),
        ({"datasets": {"p": {"manifst": "x"}}, "encoders": ["a"]}, "unknown key 'manifst'; did you mean 'manifest'?"),
        ({"datasets": DATA, "encoders": ["a"], "heads": [{"label": "x"}]}, "has no key 'head'"),
        ({"datasets": DATA, "encoders": [{"name": "x"}]}, "has no key 'encoder'"),
        ({"datasets": DATA, "encoders": ["a"], "heads": ["linear", "linear"]}, "has 'linear on a' twice"),
        ({"datasets": DATA, "encoders": ["a"], "heads": [3]}, "expected names or mappings, found 3"),
        ({"datasets": {"p": {"manifest": "${NO_SUCH}/m.csv"}}, "encoders": ["a"]}, "run with NO_SUCH=<folder>"),
        (
            {"datasets": DATA, "encoders": ["a"], "heads": ["linear", {"label": "x", "head": "linear", "folds": 3}]},
            "folds is 5 for 'prior' but 3 for 'x on a'",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, content, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        suite_of(tmp_path, content)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_head_is_named(tmp_path) -> None:
    with pytest.raises(HeadError, match="no head 'lineer'; did you mean 'linear'"):
        suite_of(tmp_path, {"datasets": DATA, "encoders": ["a"], "heads": ["lineer"]})


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_the_suites_of_the_project_can_be_read(path, monkeypatch, tmp_path) -> None:
    for name in ("FROSTLINE_DATASETS", "FROSTLINE_MANIFESTS"):
        monkeypatch.setenv(name, str(tmp_path))
    suite = read_suite(CompareConfig.build({"manifest": path, "store": "store", "out": "out"}, where="the test"))
    assert suite.cells[0].data == path.stem
    manifests = {tmp_path / path.stem / "manifest.csv", tmp_path / f"{path.stem}.csv"}
    assert {cell.config.manifest for cell in suite.cells} <= manifests
    assert sum(cell.head == "prior" for cell in suite.cells) == len(suite.by_data())


def test_there_are_suites() -> None:
    assert {"brain_mri", "covid_cxr_notes", "fsdd", "lus_video", "nih_cxr_multilabel", "rt_polarity"} <= {
        path.stem for path in SUITES
    }
