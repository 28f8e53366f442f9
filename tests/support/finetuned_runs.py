"""What tests of fine-tuned runs share: their records, their weights, and how one is stopped."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from finetune.loop import Loop

VIEWS = ["--single-view", "0.3", "--view-dropout", "0.3", "--consistency", "0.2", "--unfreeze", "last:1"]
"""Options of training by some views of a study."""


def record_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "record.json").read_text())
    return found


def best_weights(run: Path) -> dict[str, torch.Tensor]:
    (path,) = (run / "checkpoints").glob("best-*.safetensors")
    return load_file(path)


def assert_same_weights(one: Path, other: Path, *, within: float = 0.0) -> None:
    ours, theirs = best_weights(one), best_weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        # Softmax takes no notice of a key's bias: its gradient is rounding alone, which Adam makes as large as others.
        if within and name.endswith(("k_proj.bias", "key_value.bias")):
            continue
        assert torch.allclose(tensor, theirs[name], rtol=0, atol=within), name


def stopped_after(steps: int, monkeypatch, run: Callable[[], Any]) -> Path:
    """Return the directory of a run that is interrupted after some steps, each of which was saved."""
    done, step = [0], Loop._step

    def stopping(self: Loop, *arguments: Any, **named: Any) -> Any:
        if done[0] == steps:
            raise KeyboardInterrupt
        done[0] += 1
        return step(self, *arguments, **named)

    monkeypatch.setattr("finetune.loop.SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", stopping)
        stopped, folder = run()
    assert stopped.code == 130
    return folder


def fit_head(frostline, clip: str, pairs: Path, tmp_path: Path, *options: str) -> Path:
    """Fit a linear head on features of the same encoder."""
    store, head = tmp_path / "store", tmp_path / "head"
    frostline("extract", pairs, "--input", "path", "--encoder", clip, "--store", store, "--precision", "fp32")
    rows = ["--input", "path", "--target", "label", "--split", "split", "--group", "patient"]
    fitted = frostline(
        *["fit-head", pairs, *rows, "--encoder", clip, "--store", store, "--head", "linear", "--bootstrap", "20"],
        *["--folds", "2", "--threshold", "0.5", "--out", head, *options],
    )
    assert fitted.code == 0, fitted.err
    return head


def written(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "path", "label", "number", "split"], *rows])
    return path


def changed(table: Path, change: Callable[[list[str]], None], name: str) -> Path:
    """Write a manifest beside another one, with its rows changed."""
    rows = list(csv.reader(table.read_text().splitlines()))[1:]
    for row in rows:
        change(row)
    return written(table.with_name(name), rows)


def assert_refused(result: Any, *words: str) -> None:
    assert result.code == 2
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.error
