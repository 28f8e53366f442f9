"""The weighted sum of objectives, and weights that change."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from data.errors import ConfigError
from finetune.objectives.weighted import Weighted, parse_weight
from finetune.outputs import Objective, Outputs


class Mean(Objective):
    """A factor times the mean of the vectors; it counts how often it is computed."""

    name: ClassVar[str] = "mean"
    needs: ClassVar[frozenset[str]] = frozenset({"vectors"})

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.calls = 0

    def forward(self, outputs: Outputs) -> Tensor:
        assert outputs.vectors is not None
        self.calls += 1
        return self.factor * outputs.vectors.mean()


OUTPUTS = Outputs(vectors=torch.tensor([[2.0, 4.0]]))


def test_the_total_is_the_weighted_sum_and_its_gradient_too() -> None:
    weighted = Weighted({"a": Mean(1.0), "b": Mean(2.0), "c": Mean(5.0)}, {"a": 0.5, "b": 0.1})
    losses = weighted(OUTPUTS, 0)
    assert {name: loss.item() for name, loss in losses.items()} == {"a": 3, "b": 6, "c": 15}
    total = weighted.total(losses, 0)
    assert total.item() == pytest.approx(0.5 * 3 + 0.1 * 6 + 15)
    total.backward()
    gradients = [weighted[name].factor.grad.item() for name in "abc"]
    assert gradients == pytest.approx([1.5, 0.3, 3.0])
    assert set(weighted.state_dict()) == {"a.factor", "b.factor", "c.factor"}


def test_a_weight_follows_the_step_and_at_0_nothing_is_computed() -> None:
    weighted = Weighted({"a": Mean(1.0), "b": Mean(2.0)}, {"b": lambda step: min(step / 10, 1.0)})
    assert weighted.weights(0) == {"a": 1.0}
    assert list(weighted(OUTPUTS, 0)) == ["a"]
    assert weighted["b"].calls == 0
    totals = [weighted.total(weighted(OUTPUTS, step), step).item() for step in (0, 5, 10, 20)]
    assert totals == pytest.approx([3, 6, 9, 9])


def test_what_is_wrong_is_said_in_one_line() -> None:
    with pytest.raises(ConfigError, match="--weight x: no objective of this run; it has a"):
        Weighted({"a": Mean(1.0)}, {"x": 1.0})
    with pytest.raises(ConfigError, match="--weight a: is -1 at step 3; expected a number >= 0"):
        Weighted({"a": Mean(1.0)}, {"a": -1.0}).weights(3)
    with pytest.raises(ConfigError, match="--weight: those of a, b are all 0 at step 0"):
        Weighted({"a": Mean(1.0), "b": Mean(1.0)}, {"a": 0.0, "b": 0.0})(OUTPUTS, 0)


def test_a_weight_is_written_as_a_number_or_as_a_ramp() -> None:
    assert parse_weight("b", "0.1") == parse_weight("b", 0.1) == 0.1
    weighted = Weighted({"a": Mean(1.0), "b": Mean(1.0)}, {"b": parse_weight("b", "cosine:0.5:1:10:30")})
    # It rises from start to stop without a jump, half way in the middle.
    expected = {0: 0.5, 10: 0.5, 15: 0.5 + 0.25 * (1 - math.cos(math.pi / 4)), 20: 0.75, 30: 1.0, 99: 1.0}
    assert {step: weighted.weights(step)["b"] for step in expected} == pytest.approx(expected)
    path = [weighted.weights(step)["b"] for step in range(40)]
    assert path == sorted(path)
    assert max(b - a for a, b in pairwise(path)) < 0.05


@pytest.mark.parametrize("text", ["much", "-1", "inf", "cosine:0:1:10", "cosine:0:1:10:x", "linear:0:-1:1:2", ""])
def test_a_weight_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--weight b={text}: expected a number >= 0, or form:start:stop:begin:end"):
        parse_weight("b", text)


def test_a_ramp_that_is_none_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--weight b=cosin:0:1:1:2: .*schedule 'cosin': expected linear, cosine, step"
    ):
        parse_weight("b", "cosin:0:1:1:2")
    with pytest.raises(ConfigError, match="ends at step 1, before it begins at 5"):
        parse_weight("b", "linear:0:1:5:1")
