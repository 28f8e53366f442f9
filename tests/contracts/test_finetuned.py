"""Encoders that fine-tuning hands back are encoders like any other, with an identity of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.manifest import Modality, Source
from featurestore.catalog import canonical, load_encoder
from featurestore.encoder import EncoderOptions
from featurestore.errors import EncoderError, UnknownEncoder, WeightsUnavailable
from finetune.handback import save_encoder
from finetune.towers import Tower, load_tower
from finetune.unfreeze import Policy

IDS = {
    "open_clip": "local-dir:{folder}",
    "open_clip_resnet": "local-dir:{folder}",
    "timm": "timm:test_efficientnet@{folder}/test_efficientnet.pt",
    **dict.fromkeys(("clip", "siglip", "dinov2", "bert", "distilbert"), "hf:{folder}"),
}
TOWERS: list[tuple[str, Modality]] = [
    ("open_clip", "image"), ("open_clip", "text"), ("open_clip_resnet", "image"), ("timm", "image"), ("clip", "image"),
    ("clip", "text"), ("siglip", "text"), ("dinov2", "image"), ("bert", "text"), ("distilbert", "text"),
]  # fmt: skip


def tower_of(zoo: Any, name: str, modality: Modality, **options: Any) -> Tower:
    folder = zoo("timm" if name == "timm" else name)
    return load_tower(IDS[name].format(folder=folder), modality=modality, device="cpu", **options)


def train(tower: Tower, sources: Sequence[Source], policy: str = "last:1", *, steps: int = 2) -> None:
    """Move what a policy lets move."""
    chosen = Policy.parse(policy)
    if policy.startswith("lora"):
        chosen.prepare(tower.network)
    chosen.apply(tower.network, 0)
    optimizer = torch.optim.AdamW([each for each in tower.parameters() if each.requires_grad], lr=1e-2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(steps):
            optimizer.zero_grad()
            vectors_of(tower, sources).square().sum().backward()
            optimizer.step()
    tower.network.eval()


def vectors_of(tower: Tower, sources: Sequence[Source]) -> Tensor:
    vectors: Tensor = tower(tower.collate([tower.read(source) for source in sources]))[0]
    return vectors


def encoded(encoder: Any, sources: Sequence[Source]) -> Tensor:
    made: Tensor = encoder.encode(encoder.collate([encoder.read(source) for source in sources]))
    return made


def projection(tower: Tower, dim: int = 5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(tower.dim, 7), nn.GELU(), nn.Dropout(0.5), nn.Linear(7, dim)).eval()


@pytest.mark.parametrize(("name", "modality"), TOWERS)
def test_a_trained_tower_comes_back_as_an_encoder(
    name: str, modality: Modality, zoo: Any, images: list[Source], texts: list[Source], tmp_path: Path
) -> None:
    sources = images if modality == "image" else texts
    tower = tower_of(zoo, name, modality)
    tower.projection = projection(tower)
    train(tower, sources)
    save_encoder(tmp_path / "encoder", {modality: tower}, similarity=None)

    encoder: Any = load_encoder(str(tmp_path / "encoder"), EncoderOptions(modality=modality))
    torch.testing.assert_close(encoded(encoder, sources), vectors_of(tower, sources).detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.as_tensor(encoder.encode_reference(sources)), encoded(encoder, sources), atol=1e-5, rtol=1e-4
    )
    base = tower.encoder.spec
    assert encoder.spec.fingerprint != base.fingerprint
    assert (encoder.spec.dim, encoder.spec.layer) == (5, "projection")
    assert (encoder.spec.preprocess, encoder.spec.family) == (base.preprocess, base.family)
    assert encoder.spec.pooling == "native"
    item, own = encoder.read(sources[0]), tower.read(sources[0])
    assert torch.equal(item, own) if isinstance(item, Tensor) else item == own
    # Only what differs is written.
    written = load_file(tmp_path / "encoder" / f"{modality}.safetensors")
    assert any(each.startswith("projection.") for each in written)
    assert 0 < sum(each.startswith("network.") for each in written) < len(tower.network.state_dict())


@pytest.mark.parametrize(
    ("name", "modality"), [("clip", "image"), ("open_clip", "text"), ("open_clip", "image"), ("bert", "text")]
)
def test_lora_is_merged(
    name: str, modality: Modality, zoo: Any, images: list[Source], texts: list[Source], tmp_path: Path
) -> None:
    sources = images if modality == "image" else texts
    tower = tower_of(zoo, name, modality)
    before = vectors_of(tower, sources).detach()
    train(tower, sources, "lora:2", steps=3)
    save_encoder(tmp_path / "encoder", {modality: tower}, similarity=None)
    encoder = load_encoder(str(tmp_path / "encoder"), EncoderOptions(modality=modality))
    made = encoded(encoder, sources)
    torch.testing.assert_close(made, vectors_of(tower, sources).detach(), atol=1e-5, rtol=0)
    assert (made - before).abs().max() > 1e-3
    assert not any("lora" in each for each in load_file(tmp_path / "encoder" / f"{modality}.safetensors"))


def test_an_untrained_tower_is_the_base_encoder(zoo: Any, tmp_path: Path) -> None:
    for name, modality in (("open_clip", "text"), ("timm", "image"), ("bert", "text")):
        tower = tower_of(zoo, name, modality)  # type: ignore[arg-type]
        folder = tmp_path / name
        save_encoder(folder, {modality: tower}, similarity=tower.encoder.similarity if name == "open_clip" else None)  # type: ignore[dict-item,union-attr]
        encoder = load_encoder(str(folder), EncoderOptions(dtype=tower.encoder.spec.dtype))
        assert encoder.spec == tower.encoder.spec
        assert [each.name for each in folder.iterdir()] == ["encoder.json"]


def test_the_fingerprint_depends_on_content_and_not_on_the_place(zoo: Any, texts: list[Source], tmp_path: Path) -> None:
    def run(folder: str, steps: int) -> str:
        tower = tower_of(zoo, "bert", "text")
        train(tower, texts, steps=steps)
        save_encoder(tmp_path / folder, {"text": tower}, similarity=None)
        return load_encoder(str(tmp_path / folder), EncoderOptions()).spec.fingerprint

    first, again, longer = run("a", 1), run("b", 1), run("c", 2)
    assert first == again != longer
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "a", tmp_path / "moved" / "elsewhere")
    assert load_encoder(str(tmp_path / "moved" / "elsewhere"), EncoderOptions()).spec.fingerprint == first
    # Saved over itself, it is what was saved last.
    shutil.copytree(tmp_path / "c", tmp_path / "b", dirs_exist_ok=True)
    tower = tower_of(zoo, "bert", "text")
    train(tower, texts, steps=1)
    save_encoder(tmp_path / "b", {"text": tower}, similarity=None)
    assert load_encoder(str(tmp_path / "b"), EncoderOptions()).spec.fingerprint == first


def test_two_towers_in_one_folder_with_their_similarity(
    zoo: Any, images: list[Source], texts: list[Source], tmp_path: Path
) -> None:
    towers: dict[Modality, Tower] = {"image": tower_of(zoo, "clip", "image"), "text": tower_of(zoo, "clip", "text")}
    train(towers["image"], images)
    similarity = {"scale": 12.5, "bias": -3.0}
    save_encoder(tmp_path / "encoder", towers, similarity=similarity)
    folder = str(tmp_path / "encoder")
    with pytest.raises(EncoderError, match="has image and text towers: say which"):
        load_encoder(folder, EncoderOptions())
    with pytest.raises(EncoderError, match="encodes image and text, not audio"):
        load_encoder(folder, EncoderOptions(modality="audio"))
    text: Any = load_encoder(folder, EncoderOptions(modality="text"))
    assert text.similarity == similarity
    # The scale is kept with the vectors: under another scale the same vectors are stored apart.
    assert text.spec.fingerprint != towers["text"].encoder.spec.fingerprint
    torch.testing.assert_close(encoded(text, texts), vectors_of(towers["text"], texts).detach(), atol=1e-6, rtol=0)
    both: Any = load_encoder(folder, EncoderOptions(modality="text", pooling="auto", also=("auto+chunks",)))
    assert both.similarity == similarity
    assert [level.pooling for level in both.levels] == ["native", "native+chunks"]


def test_other_poolings_are_read_off_the_trained_network_unprojected(
    zoo: Any, texts: list[Source], tmp_path: Path
) -> None:
    tower = tower_of(zoo, "bert", "text", pooling="cls")
    tower.projection = nn.Linear(tower.dim, 5)
    train(tower, texts)
    save_encoder(tmp_path / "encoder", {"text": tower}, similarity=None)
    options = EncoderOptions(pooling="auto", also=("mean", "tokens"))
    encoder: Any = load_encoder(str(tmp_path / "encoder"), options)
    assert [(each.pooling, each.dim) for each in encoder.levels] == [("native", 5), ("mean", 32), ("tokens", 32)]
    batch = encoder.collate([encoder.read(source) for source in texts])
    cls, mean, tokens = encoder.encode_levels(batch)
    torch.testing.assert_close(mean, torch.stack([each.mean(0) for each in tokens]), atol=1e-6, rtol=0)
    first = torch.stack([each[0] for each in tokens])
    torch.testing.assert_close(cls, tower.projection(first).detach(), atol=1e-6, rtol=0)
    alone = load_encoder(str(tmp_path / "encoder"), replace(options, pooling="tokens", also=()))
    assert alone.spec == encoder.levels[2]
    assert load_encoder(str(tmp_path / "encoder"), EncoderOptions(pooling="native")).spec == encoder.spec
    with pytest.raises(EncoderError, match="no pooling 'cls'; it gives native"):
        load_encoder(str(tmp_path / "encoder"), EncoderOptions(pooling="cls"))


def test_it_can_be_trained_further_and_wrapped(
    zoo: Any, images: list[Source], videos: list[Source], tmp_path: Path
) -> None:
    tower = tower_of(zoo, "timm", "image")
    tower.projection = projection(tower)
    train(tower, images)
    save_encoder(tmp_path / "one", {"image": tower}, similarity=None)
    second = load_tower(str(tmp_path / "one"), modality="image", device="cpu")
    second.projection = nn.Linear(second.dim, 4)
    train(second, images)
    save_encoder(tmp_path / "two", {"image": second}, similarity=None)
    encoder = load_encoder(str(tmp_path / "two"), EncoderOptions())
    assert encoder.spec.dim == 4
    torch.testing.assert_close(encoded(encoder, images), vectors_of(second, images).detach(), atol=1e-5, rtol=0)
    assert len(encoder.spec.architecture["projection"]) == 2

    wrapped = load_encoder(f"frames:2+{tmp_path / 'two'}", EncoderOptions())
    assert canonical(f"frames:2+{tmp_path / 'two'}") == f"frames:2+finetuned:{(tmp_path / 'two').resolve()}"
    assert (wrapped.spec.modality, wrapped.spec.dim) == ("video", 4)
    assert encoded(wrapped, videos).shape == (len(videos), 4)


@pytest.fixture
def saved(zoo: Any, texts: list[Source], tmp_path: Path) -> Path:
    tower = tower_of(zoo, "distilbert", "text")
    train(tower, texts, steps=1)
    save_encoder(tmp_path / "encoder", {"text": tower}, similarity=None)
    return tmp_path / "encoder"


def refusal(folder: Path | str, error: type[EncoderError]) -> str:
    with pytest.raises(error) as raised:
        load_encoder(str(folder), EncoderOptions())
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2
    return str(raised.value)


def test_paths_are_canonical(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    expected = f"finetuned:{saved.resolve()}"
    for spelling in (
        "encoder",
        "./encoder/",
        "../" + saved.parent.name + "/encoder",
        str(saved),
        "finetuned:encoder",
        expected,
    ):
        assert canonical(spelling) == expected


def test_a_folder_that_is_gone_says_what_to_do(saved: Path) -> None:
    full = canonical(str(saved))
    shutil.move(saved, saved.parent / "other")
    message = refusal(full, UnknownEncoder)
    assert message.startswith(full)
    assert "move it back, or extract with its new path and fit the head again" in message


def test_damage_is_refused(saved: Path) -> None:
    state = load_file(saved / "text.safetensors")
    name = next(iter(state))
    for changed in (
        {**state, name: state[name] + 1},
        {**state, "network.no_such_tensor": torch.zeros(1)},
        {**state, "other": torch.zeros(1)},
        {**state, name: torch.zeros(1, 2, 3)},
    ):
        save_file(changed, saved / "text.safetensors")
        assert "damaged" in refusal(saved, WeightsUnavailable)
    (saved / "text.safetensors").unlink()
    assert "no such checkpoint file" in refusal(saved, WeightsUnavailable)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not the description of an encoder"),
        ('{"format_version": 9}', "format version 9, this release reads up to 1"),
        ('{"towers": {"text": {"encoder": 3}}}', "towers.text.encoder"),
    ],
)
def test_a_description_that_is_none_is_refused(saved: Path, content: str, message: str) -> None:
    (saved / "encoder.json").write_text(content)
    assert message in refusal(saved, WeightsUnavailable)


def test_a_base_that_is_gone_or_another_is_refused(saved: Path, zoo: Any) -> None:
    description = json.loads((saved / "encoder.json").read_text())
    tower = description["towers"]["text"]
    tower["encoder"] = f"hf:{zoo('distilbert', seed=1)}"
    (saved / "encoder.json").write_text(json.dumps(description))
    message = refusal(saved, WeightsUnavailable)
    assert f"was trained from weights {tower['base'][:12]} of {tower['encoder']}" in message
    assert message.endswith("fine-tune again")
    tower["encoder"] = "hf:/no/such/folder"
    (saved / "encoder.json").write_text(json.dumps(description))
    assert "its base encoder cannot be loaded: hf:/no/such/folder: no folder" in refusal(saved, UnknownEncoder)


@pytest.mark.parametrize("form", ["py:{}:make", "frames+py:{}:make"])
def test_a_folder_does_not_choose_code_to_run(form: str, saved: Path) -> None:
    (saved / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\nmake = None\n")
    description = json.loads((saved / "encoder.json").read_text())
    description["towers"]["text"]["encoder"] = form.format(saved / "evil.py")
    (saved / "encoder.json").write_text(json.dumps(description))
    message = refusal(saved, EncoderError)
    assert "runs code that this folder names; allow it with --trust-remote-code" in message
    assert not (saved / "ran").exists()


def test_what_cannot_be_handed_back_is_refused_and_nothing_is_overwritten(zoo: Any, tmp_path: Path) -> None:
    tower = tower_of(zoo, "bert", "text")
    (tmp_path / "mine").mkdir()
    with pytest.raises(EncoderError, match="exists and is no encoder of a run"):
        save_encoder(tmp_path / "mine", {"text": tower}, similarity=None)
    tower.projection = nn.Sequential(nn.Linear(32, 4), nn.Softmax(dim=1))
    with pytest.raises(EncoderError, match=r"a projection with Softmax.* cannot be handed back"):
        save_encoder(tmp_path / "encoder", {"text": tower}, similarity=None)
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]
