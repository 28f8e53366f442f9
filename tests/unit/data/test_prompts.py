"""Prompts: templates, names, files, and every way in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.errors import ConfigError
from data.prompts import TEMPLATES, captions, clean_name, make_prompts

CLASSES = ("Pleural_Effusion", "COPD", "Mass")


@pytest.fixture
def file(tmp_path: Path):
    def write(content: object, name: str = "prompts.yaml") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("Pleural_Effusion", "pleural effusion"),
        ("COPD", "COPD"),
        ("T2_lesion", "T2 lesion"),
        ("no_tumor", "no tumor"),
        ("  Heart   Failure ", "heart failure"),
        ("A", "a"),
        ("0", "0"),
    ],
)
def test_class_names_become_words(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


def test_the_default_is_five_templates_and_their_negation() -> None:
    prompts = make_prompts(CLASSES)
    assert prompts.classes == CLASSES
    assert prompts.positive[0] == (
        "signs of pleural effusion",
        "indication of pleural effusion",
        "evidence of pleural effusion",
        "presence of pleural effusion",
        "characteristic of pleural effusion",
    )
    assert prompts.negative[1][:2] == ("no signs of COPD", "no indication of COPD")
    assert [len(texts) for texts in prompts.negative] == [5, 5, 5]


def test_own_templates_negate_the_finding() -> None:
    prompts = make_prompts(CLASSES, templates=["a chest X-ray of {finding}", "{finding}"])
    assert prompts.positive[2] == ("a chest X-ray of mass", "mass")
    assert prompts.negative[2] == ("a chest X-ray of no mass", "no mass")


@pytest.mark.parametrize("name", ["prompts.yaml", "prompts.json"])
def test_a_file_says_more(file, name: str) -> None:
    path = file(
        {
            "templates": ["a picture of {finding}"],
            "negative_templates": ["a picture without {finding}"],
            "names": {"COPD": "obstructed lungs"},
            "classes": {
                "Pleural_Effusion": ["fluid around the lung", "{finding} on the left"],
                "Mass": {"positive": "a lung mass", "negative": ["clear lungs"]},
            },
        },
        name,
    )
    prompts = make_prompts(CLASSES, file=path)
    assert prompts.positive == (
        ("fluid around the lung", "pleural effusion on the left"),
        ("a picture of obstructed lungs",),
        ("a lung mass",),
    )
    assert prompts.negative == (
        ("no fluid around the lung", "no pleural effusion on the left"),
        ("a picture without obstructed lungs",),
        ("clear lungs",),
    )


def test_templates_of_the_command_line_win_and_the_captions_of_the_brain_data_can_be_written(file) -> None:
    path = file({"templates": ["nothing of {finding}"], "classes": {"notumor": ["MRI scan with no tumor"]}})
    prompts = make_prompts(("glioma", "notumor"), templates=["MRI scan with {finding} tumor"], file=path)
    assert prompts.positive == (("MRI scan with glioma tumor",), ("MRI scan with no tumor",))


def test_a_class_that_yaml_reads_as_a_number(file) -> None:
    path = file("names:\n  0: a bad review\n  1: a good review\n")
    assert make_prompts(("0", "1"), templates=["{finding}"], file=path).positive == (
        ("a bad review",),
        ("a good review",),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"classes": {"Mas": ["a mass"]}}, "classes: the task has no class 'Mas'; did you mean 'Mass'"),
        ({"names": {"Nodule": "a nodule"}}, "names: the task has no class 'Nodule'"),
        ({"classes": {"Mass": []}}, "classes: Mass: has no prompt"),
        ({"classes": {"Mass": {"negative": ["clear"]}}}, "classes: Mass: has no prompt"),
        ({"classes": {"Mass": {"good": ["clear"]}}}, "expected positive and negative, found 'good'"),
        ({"classes": ["Mass"]}, "classes: expected a mapping of classes"),
        ({"templates": ["a chest X-ray"]}, "templates: 'a chest X-ray' does not say where the class goes"),
        ({"negative_templates": ["clear lungs"]}, "negative_templates: 'clear lungs' does not say"),
        ({"templates": 3}, "templates: expected a text or a list of texts, found 3"),
        ({"classes": {"Mass": ["  "]}}, "classes: Mass: expected a text, found '  '"),
        ({"names": {"Mass": ["a", "b"]}}, "names: Mass: expected a text"),
        ({"template": ["{finding}"]}, "unknown key 'template'; did you mean 'templates'"),
        ("templates: [", "not a YAML file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(file, content: object, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_prompts(CLASSES, file=file(content))
    assert message in str(refused.value)


@pytest.mark.parametrize("template", ["signs of {pathology}", "signs of {class}", "signs"])
def test_a_template_must_hold_the_placeholder(template: str) -> None:
    with pytest.raises(ConfigError, match=r"--template: .* expected \{finding\} in it"):
        make_prompts(CLASSES, templates=[template])


def test_a_code_is_no_word_to_prompt_with(file) -> None:
    with pytest.raises(ConfigError, match="class '0' is no word"):
        make_prompts(("0", "1"))
    named = make_prompts(("0", "1"), file=file({"names": {"0": "no effusion"}, "classes": {"1": ["effusion"]}}))
    assert named.positive == (tuple(template.format(finding="no effusion") for template in TEMPLATES), ("effusion",))
    assert make_prompts(("T2",)).positive[0][0] == "signs of T2"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        make_prompts(CLASSES, file=tmp_path / "none.yaml")


def test_captions_of_samples(file) -> None:
    path = file({"classes": {"notumor": "MRI scan with no tumor"}})
    texts = make_prompts(("glioma", "notumor", "pituitary"), templates=("MRI scan with {finding} tumor",), file=path)
    assert captions(("pituitary", None, "notumor", "glioma", "glioma"), texts) == (
        "MRI scan with pituitary tumor",
        None,
        "MRI scan with no tumor",
        "MRI scan with glioma tumor",
        "MRI scan with glioma tumor",
    )
    with pytest.raises(ConfigError, match="no class 'gliom' to caption; did you mean 'glioma'"):
        captions(("gliom",), texts)
