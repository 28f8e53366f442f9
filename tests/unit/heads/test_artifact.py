"""Bundles: whole or not there, readable in a fresh process, and strict about what they are used on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest

from heads import artifact
from heads.artifact import ARRAYS, DESCRIPTION, load_bundle, save_bundle
from heads.base import Head, HeadState
from heads.errors import BundleError
from heads.estimators.knn import KNNClassifier
from heads.estimators.linear import LinearClassifier

TASK = {"kind": "binary", "classes": ["a", "b"]}
INPUTS = [
    {"encoder": "offline:efficientnet-lite0", "fingerprint": "1f" * 32, "dim": 2},
    {"encoder": "offline:minilm", "fingerprint": "2e" * 32, "dim": 2},
]


@pytest.fixture
def X() -> Any:
    return np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)


@pytest.fixture
def head(X: Any) -> LinearClassifier:
    return LinearClassifier(C=0.1).fit(X, np.where(X[:, 0] > 0, "b", "a"))


@pytest.fixture
def folder(tmp_path: Path, head: Head) -> Path:
    save_bundle(tmp_path / "head", head, task=TASK, inputs=INPUTS, extra={"thresholds": [0.3]})
    return tmp_path / "head"


def edit(folder: Path, change: Any) -> None:
    """Rewrite the description by a function of its JSON value."""
    value = json.loads((folder / DESCRIPTION).read_text())
    change(value)
    (folder / DESCRIPTION).write_text(json.dumps(value))


def test_a_bundle_keeps_all_it_was_given(folder: Path, head: LinearClassifier, X: Any) -> None:
    bundle = load_bundle(folder)
    assert (bundle.task, bundle.inputs, bundle.extra) == (TASK, INPUTS, {"thresholds": [0.3]})
    assert isinstance(bundle.head, LinearClassifier)
    assert np.array_equal(bundle.head.decision_function(X), head.decision_function(X))
    assert sorted(path.name for path in folder.iterdir()) == [ARRAYS, DESCRIPTION]
    assert [path.name for path in folder.parent.iterdir()] == ["head"]  # nothing is left beside it


def test_a_fresh_process_predicts_the_same_without_torch(folder: Path, head: LinearClassifier, X: Any) -> None:
    np.save(folder.parent / "X.npy", X)
    code = (
        "import sys, numpy as np; from pathlib import Path; from heads.artifact import load_bundle\n"
        "p = Path(sys.argv[1]); print(load_bundle(p).head.predict_proba(np.load(p.parent / 'X.npy')).tobytes().hex())\n"
        "assert 'torch' not in sys.modules and 'pickle' not in sys.modules.get('heads.artifact').__dict__"
    )
    found = run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert bytes.fromhex(found.stdout.strip()) == head.predict_proba(X).tobytes()


def test_own_features_pass(folder: Path) -> None:
    load_bundle(folder).check_inputs([entry["fingerprint"] for entry in INPUTS])


@pytest.mark.parametrize(
    "fingerprints",
    [["1f" * 32, "3d" * 32], ["2e" * 32, "1f" * 32], ["1f" * 32], []],
    ids=["other", "order", "one", "none"],
)
def test_features_of_another_encoder_are_refused(folder: Path, fingerprints: list[str]) -> None:
    with pytest.raises(BundleError, match="offline:efficientnet-lite0") as caught:
        load_bundle(folder).check_inputs(fingerprints)
    assert "1f1f1f1f1f1f1f1f" in str(caught.value)
    assert all(fingerprint[:16] in str(caught.value) for fingerprint in fingerprints)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [ARRAYS, DESCRIPTION])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}.*missing"):
        load_bundle(folder)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle here"):
        load_bundle(tmp_path / "nothing")


@pytest.mark.parametrize("position", [0, 20, -1])
def test_a_changed_byte_in_the_arrays(folder: Path, position: int) -> None:
    content = bytearray((folder / ARRAYS).read_bytes())
    content[position] ^= 1
    (folder / ARRAYS).write_bytes(content)
    with pytest.raises(BundleError, match=r"arrays\.safetensors: damaged; expected SHA-256 [0-9a-f]{16}, found"):
        load_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"x"', "null"])
def test_a_damaged_description(folder: Path, text: str) -> None:
    (folder / DESCRIPTION).write_text(text)
    with pytest.raises(BundleError, match=r"head\.json") as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=99), "format version 99, this release reads up to 1; upgrade"),
        (lambda d: d["head"].update(version=99), "head 'linear' is of version 99, this release knows 1; upgrade"),
        (lambda d: d["head"].update(name="linaer"), "did you mean 'linear'"),
        (lambda d: d["head"]["params"].update(C=-1), "C=-1 is wrong"),
        (lambda d: d["head"]["state"].update(predict=1), "'predict' is no learned attribute"),
        (lambda d: d["head"]["state"]["classes_"].update(dtype="nonsense"), "cannot be restored"),
        (lambda d: d.pop("inputs"), "inputs: Field required"),
        (lambda d: d.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda d: d["files"].update({"../outside": "0"}), "no name of a file in a bundle"),
        (lambda d: d["files"].pop(ARRAYS), "cannot be restored"),
    ],
)
def test_descriptions_that_cannot_be_used(folder: Path, change: Any, message: str) -> None:
    edit(folder, change)
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


def test_an_older_bundle_is_replaced_and_nothing_else_is(folder: Path, X: Any) -> None:
    other = KNNClassifier().fit(X, np.where(X[:, 0] > 0, "b", "a"))
    save_bundle(folder, other, task=TASK, inputs=INPUTS)
    assert isinstance(load_bundle(folder).head, KNNClassifier)
    (folder.parent / "thesis").mkdir()
    (folder.parent / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        save_bundle(folder.parent / "thesis", other, task=TASK, inputs=INPUTS)
    assert (folder.parent / "thesis" / "chapter.tex").exists()


def test_a_write_that_fails_leaves_the_old_bundle(
    folder: Path, head: LinearClassifier, X: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="cannot be written: No space left on device"):
        save_bundle(folder, KNNClassifier().fit(X, X[:, 0] > 0), task=TASK, inputs=INPUTS)
    monkeypatch.undo()
    assert np.array_equal(load_bundle(folder).head.predict(X), head.predict(X))
    assert [path.name for path in folder.parent.iterdir()] == ["head"]


@pytest.mark.parametrize("extra", [{"threshold": float("nan")}, {"threshold": object()}])
def test_values_that_are_not_json_are_refused(tmp_path: Path, head: Head, extra: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="must be JSON"):
        save_bundle(tmp_path / "head", head, task=TASK, inputs=INPUTS, extra=extra)
    assert not (tmp_path / "head").exists()


def test_numpy_values_become_numbers(tmp_path: Path, head: Head) -> None:
    save_bundle(tmp_path / "head", head, task=TASK, inputs=INPUTS, extra={"a": np.float32(0.5), "b": np.arange(2)})
    assert load_bundle(tmp_path / "head").extra == {"a": 0.5, "b": [0, 1]}


def test_texts_are_files_of_their_own(tmp_path: Path, X: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wordy(LinearClassifier):
        def get_state(self) -> HeadState:
            state = super().get_state()
            return HeadState(state.arrays, state.meta, {"model.txt": "tree 0: ä"})

        @classmethod
        def from_state(cls, params: Any, state: HeadState) -> Wordy:
            head = super().from_state(params, HeadState(state.arrays, state.meta))
            head.words_ = state.texts["model.txt"]
            return head

    monkeypatch.setattr(artifact, "head_class", lambda name, kind: Wordy)
    save_bundle(tmp_path / "head", Wordy(C=1.0).fit(X, X[:, 0] > 0), task=TASK, inputs=INPUTS)
    assert (tmp_path / "head" / "model.txt").read_text(encoding="utf-8") == "tree 0: ä"
    loaded: Any = load_bundle(tmp_path / "head").head
    assert loaded.words_ == "tree 0: ä"
    (tmp_path / "head" / "model.txt").write_text("tree 1")
    with pytest.raises(BundleError, match=r"model\.txt: damaged"):
        load_bundle(tmp_path / "head")
