"""Captions of real photographs: a small decoder on the tokens of a frozen network."""

from __future__ import annotations

import csv

import pytest
import torch

from data.manifest import Source
from finetune.captions import CaptionTokenizer
from finetune.objectives.captioning import Captioning
from finetune.outputs import Outputs
from finetune.texts import text_metrics
from finetune.towers import load_tower

PHOTOS = 24
EPOCHS = 40

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_decoder_learns_captions_of_photographs(datasets) -> None:
    with (datasets / "flickr8k_1k" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"][:PHOTOS]
    tower = load_tower("offline:efficientnet-lite0", modality="image", device="cpu", tokens=True)
    texts = load_tower("offline:minilm", modality="text", device="cpu")
    tokenizer = CaptionTokenizer.of_encoder(texts.encoder, texts.name)
    sources = [Source("image", path=datasets / "flickr8k_1k" / row["path"]) for row in rows]
    with torch.no_grad():
        parts = [
            tower(tower.collate([tower.read(source) for source in sources[i : i + 8]]))[1] for i in range(0, PHOTOS, 8)
        ]
    tokens = torch.cat(parts)
    assert tokens.shape == (PHOTOS, 49, 1280)
    captions, mask = tokenizer.encode([row["caption_0"] for row in rows], max_length=32)
    torch.manual_seed(0)
    objective = Captioning(
        tokenizer=tokenizer, token_dim=1280, layers=2, heads=4, dim=128, feedforward=256, max_length=32
    )
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    losses = []
    for _ in range(EPOCHS):
        for batch in torch.randperm(PHOTOS).split(8):
            optimizer.zero_grad()
            loss = objective(Outputs(tokens=tokens[batch], captions=captions[batch], caption_mask=mask[batch]))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
    first, last = (sum(part) / 4 for part in (losses[:4], losses[-4:]))
    assert last < 0.6 * first
    objective.eval()
    references = [[row[f"caption_{i}"] for i in range(5)] for row in rows]
    own = text_metrics(objective.write(tokens), references, n_boot=100)
    other = text_metrics(objective.write(tokens.roll(1, dims=0)), references, n_boot=100)
    assert own["wordless"] == 0
    # What is learned is these photographs, and it is read off their tokens.
    assert own["rouge1"]["low"] > other["rouge1"]["high"]
