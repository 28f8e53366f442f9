"""The recipes and suites of the project can be read, name what there is, and say which commands they want."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data.errors import ConfigError
from data.prompts import make_prompts
from featurestore.catalog import canonical
from featurestore.encoder_ids import split_joined
from heads.catalog import head_classes
from heads.comparing.suite import Suite, read_suite
from heads.config import CompareConfig
from heads.errors import HeadError
from heads.params import parse_params

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "docs" / "recipes"
PROMPTS = RECIPES / "brain_mri_prompts.yaml"
FILES = sorted({*RECIPES.glob("*.yaml"), *(ROOT / "benchmarks" / "suites").glob("*.yaml")} - {PROMPTS})
PAGES = [RECIPES / "README.md", *FILES]
COMMAND = re.compile(r"^(?:# +)?(?:\w+=\S+ )?(frostline (?:\w|-)+ (?:.*\\\n)*.*)$", re.MULTILINE)


def read(path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Suite:
    for name in ("FROSTLINE_DATA", "FROSTLINE_DATASETS", "FROSTLINE_MANIFESTS"):
        monkeypatch.setenv(name, str(folder))
    return read_suite(CompareConfig.build({"manifest": path, "store": "store", "out": "out"}, where="the test"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_is_read_strictly_and_names_what_there_is(path, monkeypatch, tmp_path) -> None:
    suite = read(path, monkeypatch, tmp_path)
    assert suite.cells
    for cell in suite.cells:
        for made in head_classes(cell.config.head):
            try:
                parse_params(made, cell.config.set)
                break
            except HeadError as error:
                problem = error
        else:
            raise problem
        ids = [*cell.config.encoder, *([cell.config.prompt_encoder] if cell.config.prompt_encoder else [])]
        assert [canonical(each) for each in ids] == ids  # as they are stored, not by a short name


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_its_comment_extracts_what_its_cells_read(path, monkeypatch, tmp_path) -> None:
    comment = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    extracted = set(re.findall(r"--encoder (\S+)", comment))
    read_by_cells = {each for cell in read(path, monkeypatch, tmp_path).cells for each in cell.config.encoder}
    assert extracted >= read_by_cells


def test_an_unknown_key_is_an_error(monkeypatch, tmp_path) -> None:
    for path in FILES:
        broken = tmp_path / path.name
        broken.write_text(path.read_text(encoding="utf-8") + "\nrepeets: 2\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="repeets"):
            read(broken, monkeypatch, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_commands_have_the_options_that_they_are_shown_with(page) -> None:
    reference = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    options = {
        section.split("\n", 1)[0]: set(re.findall(r"--[\w-]+", section)) for section in reference.split("\n## ")[1:]
    }
    commands = COMMAND.findall(page.read_text(encoding="utf-8"))
    assert commands
    for command in commands:
        name = " ".join(command.split()[:2])
        assert set(re.findall(r"(?<= )--[\w-]+", command)) <= options[name], command


def test_every_recipe_is_on_the_page() -> None:
    page = (RECIPES / "README.md").read_text(encoding="utf-8")
    for path in RECIPES.glob("*.yaml"):
        assert f"]({path.name})" in page
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        assert (RECIPES / target).exists(), target
    for written in re.findall(r"--encoder (\S+)", page):
        assert split_joined(canonical(written.strip("`"))) == (written.strip("`"),)


def test_the_captions_of_the_tumours_are_those_of_the_recipe() -> None:
    texts = make_prompts(("glioma", "meningioma", "notumor", "pituitary"), file=PROMPTS)
    assert [each for found in texts.positive for each in found] == [
        "MRI scan with glioma tumor",
        "MRI scan with meningioma tumor",
        "MRI scan with no tumor",
        "MRI scan with pituitary tumor",
    ]


def test_the_modes_of_the_dementia_recipe_are_three_with_both_presets(monkeypatch, tmp_path) -> None:
    suite = read(RECIPES / "speech_dementia.yaml", monkeypatch, tmp_path)
    cells = {(cell.encoder, cell.head): cell.config for cell in suite.cells if cell.encoder}
    modes, presets = ("vision_only", "multimodal_basic", "multimodal_full"), ("dementia_readme", "dementia_head")
    assert set(cells) == {(mode, head) for mode in modes for head in (*presets, "linear")}
    for mode in modes:
        readme, head = (cells[mode, preset].set for preset in presets)
        shape = {"hidden", "norm", "dropout", "members", "standardize"}
        assert {name: readme[name] for name in shape} == {name: head[name] for name in shape}
        assert (readme["lr"], readme["batch_size"], readme["focal_gamma"], readme["label_smoothing"]) == (
            5e-4,
            32,
            2,
            0.1,
        )
        assert (head["lr"], head["batch_size"], head["focal_gamma"]) == (2e-4, 16, 1)
        assert "label_smoothing" not in head
    assert {(cell.config.folds, cell.config.group) for cell in suite.cells} == {(5, "person")}
