"""The digest of weights covers their content and nothing else; reading them runs no code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from featurestore.errors import WeightsUnavailable
from featurestore.weights import assign_weights, load_weights, seeded, weights_digest


def network() -> nn.Sequential:
    with seeded(0):
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))


def _nudge(model: nn.Sequential) -> None:
    model[3].bias.data[0] += 1e-6


def _nudge_buffer(model: nn.Sequential) -> None:
    model[1].running_mean[0] += 1e-6


def _swap(model: nn.Sequential) -> None:
    model[1].weight.data, model[1].bias.data = model[1].bias.data, model[1].weight.data


def _to_double(model: nn.Sequential) -> None:
    model.double()


def _reshape(model: nn.Sequential) -> None:
    model[3].weight.data = model[3].weight.data.reshape(8, 4)


@pytest.mark.parametrize("change", [_nudge, _nudge_buffer, _swap, _to_double, _reshape])
def test_any_change_of_content_changes_the_digest(change: Callable[[nn.Sequential], None]) -> None:
    changed = network()
    change(changed)
    assert weights_digest(changed) != weights_digest(network())


def test_layout_and_order_do_not_change_the_digest() -> None:
    expected = weights_digest(network())
    assert weights_digest(network().to(memory_format=torch.channels_last)) == expected
    assert weights_digest(network().eval().requires_grad_(False)) == expected
    assert len(expected) == 64


def test_loose_parameters_count_and_absent_ones_do_not() -> None:
    model, loose = network(), nn.Parameter(torch.ones(3))
    assert weights_digest(model, projection=loose) != weights_digest(model)
    assert weights_digest(model, projection=None) == weights_digest(model)


def test_bfloat16_weights_have_a_digest() -> None:
    assert weights_digest(network().bfloat16()) != weights_digest(network())


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_torch_checkpoints_are_unwrapped(wrap: Callable[[object], object], tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in network().state_dict().items()}
    torch.save(wrap(state), tmp_path / "weights.pt")
    model = network()
    with torch.no_grad():
        model[3].weight.zero_()
    assign_weights(model, load_weights(tmp_path / "weights.pt"), path="weights.pt")
    assert weights_digest(model) == weights_digest(network())


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "weights.safetensors")
    assert set(load_weights(tmp_path / "weights.safetensors")) == set(network().state_dict())


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"x": Bomb()}))
    for name in ("bomb.pt", "plain.pt"):
        with pytest.raises(WeightsUnavailable, match="without running code"):
            load_weights(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.safetensors", b"\x08\x00", "cannot be read"),
        ("cut.pt", b"PK\x03\x04", "cannot be read"),
        ("absent.pt", None, "no such checkpoint file"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsUnavailable, match=message) as raised:
        load_weights(tmp_path / name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(WeightsUnavailable, match="holds no state dict; found epoch"):
        load_weights(tmp_path / "weights.pt")


def test_every_key_must_have_its_place() -> None:
    state = network().state_dict()
    del state["3.bias"]
    with pytest.raises(WeightsUnavailable, match=r'Missing key.*"3.bias"'):
        assign_weights(network(), state, path="some.pt")
    assign_weights(network()[:3], network().state_dict(), path="some.pt", ignored=("3.",))


def test_seeded_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded(0):
        torch.rand(7)
    assert torch.equal(torch.rand(2), expected)
