"""Two processes train as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from finetuned_runs import VIEWS, assert_same_weights, record_of

ROOT = Path(__file__).resolve().parents[3]


PAIR = ["--text", "caption", "--target", "label"]


TOGETHER = {
    "looks": (["--unfreeze", "gradual:1:1", "--judge-every", 2, *PAIR], "classification,contrastive", 2),
    "a falling share": (["--unfreeze", "frozen:0:linear:2", *PAIR], "classification,contrastive", 3),
    "studies": (["--bag", "patient", "--target", "grade", *VIEWS], "classification", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TOGETHER))
def test_two_processes_train_as_one(tuned, clip: str, pairs: Path, studies: Path, tmp_path: Path, name: str) -> None:
    """Two passes on each of two against one on one, with looks in between, other parameters by the epoch, and views."""
    own, objective, epochs = TOGETHER[name]
    manifest = studies if name == "studies" else pairs
    options = [*own, *(["--text-encoder", clip] if "--text" in own else []), "--lr", "0.01"]
    result, one = tuned(*options, objective=objective, epochs=epochs, manifest=manifest)
    assert result.code == 0, result.err
    two = tmp_path / "two"
    command = ["finetune", manifest, "--input", "path", "--encoder", clip, "--split", "split", "--group", "patient"]
    command += ["--objective", objective, "--epochs", epochs, "--batch-size", 4, "--accumulate", 2, "--bootstrap", 20]
    arguments = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments += ["-m", "cli", *map(str, [*command, *options, "--out", two])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_weights(one, two, within=2e-5)
    ours, theirs = record_of(one), record_of(two)
    assert theirs["training"]["processes"] == 2
    for name in ("roc_auc", "log_loss"):
        assert ours["metrics"]["test"][name]["value"] == pytest.approx(
            theirs["metrics"]["test"][name]["value"], abs=1e-4
        )
