"""What of an encoder trains, on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetuned_runs import assert_same_weights, record_of


def test_a_cached_depth_trains_the_same_upper_blocks(tuned, frostline, tmp_path: Path) -> None:
    options = ["--unfreeze", "last:1", "--lr", "0.01"]
    _, whole = tuned(*options, out="whole")
    result, cached = tuned(*options, "--cache-depth", out="cached")
    assert result.code == 0, result.err
    assert_same_weights(whole, cached, within=2e-5)
    (kept,) = frostline("store", "ls", tmp_path / "store", "--json").json
    assert "up to block 1" in kept["names"][0]
    assert record_of(cached)["inputs"][0]["fingerprint"] == record_of(whole)["inputs"][0]["fingerprint"]
    refused, _ = tuned(*options, "--cache-depth", "--augment", "flip", out="augmented")
    assert refused.code == 2
    assert "augment" in refused.error


def test_a_frozen_share_is_the_blocks_that_it_leaves(tuned) -> None:
    """Half of two blocks; a share that falls in an epoch that a run does not reach is refused."""
    (_, last), (_, frozen) = tuned("--unfreeze", "last:1", out="last"), tuned("--unfreeze", "frozen:0.5", out="frozen")
    assert_same_weights(last, frozen)
    unreached, _ = tuned("--unfreeze", "frozen:0.5:step:2", out="unreached")
    assert unreached.code == 2
    assert "nothing would ever be unfrozen" in unreached.error
    assert record_of(frozen)["parameters"]["encoder"] == record_of(last)["parameters"]["encoder"]
    cached, _ = tuned("--unfreeze", "frozen:0.5:linear:2", "--cache-depth", out="cached")
    assert cached.code == 2
    assert "no lower blocks stay as they are" in cached.error


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_that_train_nothing_are_refused(tuned, clip: str, accumulate: int) -> None:
    """A triplet loss has no parameters of its own, and nothing of the towers is trained in the first epoch."""
    options = ["--text", "caption", "--text-encoder", clip, "--unfreeze", "gradual:1:1", "--accumulate", accumulate]
    result, _ = tuned(*options, objective="triplet")
    assert result.code == 2
    assert "no loss depends on anything that is trained in epoch 0, step 0" in result.error
