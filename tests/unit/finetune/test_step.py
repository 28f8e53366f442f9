"""A step of several forward passes is the step of the one large batch, whatever the objective, on any processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from data.manifest import Source
from data.progress import Silent
from data.task import Task
from finetune.aggregator import TransformerOfViews
from finetune.batches import split, steps_of
from finetune.checkpoint import Checkpoints, Progressed
from finetune.feed import Feed, Known
from finetune.loop import Course, Loop
from finetune.model import Model
from finetune.objectives.captioning import Captioning
from finetune.objectives.classification import Classification
from finetune.objectives.contrastive import Contrastive
from finetune.objectives.sigmoid import Sigmoid
from finetune.objectives.triplet import Triplet
from finetune.objectives.weighted import Weighted
from finetune.outputs import Objective
from finetune.runner import Runner, make_accelerator
from finetune.unfreeze import Policy

SIZE, DIM = 36, 6
TASK = Task(kind="multiclass", targets=("label",), classes=("a", "b", "c"))
LABELS = np.random.default_rng(0).integers(-1, 3, SIZE)
VIEWS = np.random.default_rng(1).integers(1, 4, SIZE)
CAPTIONS = np.random.default_rng(2).integers(0, 11, (SIZE, 7))
LENGTHS = np.random.default_rng(3).integers(0, 8, SIZE)
SETS = ["contrastive", "sigmoid", "triplet", "random", "contrastive+captioning", "classification+sigmoid+captioning"]


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    objectives: str
    batch: int = 12
    accumulate: int = 1
    studies: bool = False
    frozen: bool = False
    dropout: float = 0.0
    amp: str = "no"
    scale: float | None = None
    judge_every: int | None = None


class Images(nn.Module):
    """A tower of vectors, which it takes for tokens as well."""

    name = "images"

    def __init__(self, *, dropout: float) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 8))
        self.projection = nn.Linear(8, 4, bias=False)

    def collate(self, items: list[Tensor]) -> Tensor:
        return torch.stack(items)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.network(inputs)
        return self.projection(hidden), hidden.reshape(len(hidden), 2, 4)


class Texts(nn.Module):
    """A tower of texts that are numbers."""

    name = "texts"

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Embedding(20, 4)

    def collate(self, texts: list[str]) -> Tensor:
        return torch.tensor([int(text) for text in texts])

    def forward(self, numbers: Tensor) -> tuple[Tensor, None]:
        return self.network(numbers), None


class Items:
    def __init__(self) -> None:
        self._values = torch.randn(int(VIEWS.sum()), DIM, generator=torch.Generator().manual_seed(0))

    def __getitem__(self, rows: Any) -> list[Tensor]:
        return [self._values[row] for row in rows]


def objectives(names: str) -> dict[str, Objective]:
    tokenizer: Any = SimpleNamespace(vocabulary=11, max_length=8)
    sizes: Any = {"layers": 1, "heads": 2, "dim": 8, "feedforward": 8, "positions": 8, "max_length": 8, "dropout": 0.0}
    makers = {
        "contrastive": Contrastive,
        "sigmoid": lambda: Sigmoid(bias=-1.0),
        "triplet": Triplet,
        "random": lambda: Triplet(negative="random"),
        "captioning": lambda: Captioning(tokenizer=tokenizer, token_dim=4, **sizes),
        "classification": lambda: Classification(task=TASK, dim=4, targets=LABELS, class_weight="balanced"),
    }
    return {name: makers[name]() for name in names.split("+")}


def make_loop(case: Case) -> Loop:
    torch.manual_seed(0)
    tower: Any = Images(dropout=case.dropout)
    text_tower: Any = Texts()
    weighted = Weighted(objectives(case.objectives), {case.objectives.split("+")[0]: 0.7})
    aggregator = TransformerOfViews(4, depth=1, heads=2, dropout=case.dropout) if case.studies else None
    device = torch.device("cpu")
    model = Model(tower, text_tower, weighted, aggregator=aggregator, device=device)
    numbers = np.arange(SIZE) % 20
    ends = np.cumsum(VIEWS)
    known = Known(targets=LABELS, text_ids=numbers, captions=CAPTIONS, caption_mask=np.arange(7) < LENGTHS[:, None])
    items: Any = Items()
    feed = Feed(
        tower=tower,
        items=items,
        items_of=lambda row: np.arange(ends[row] - VIEWS[row], ends[row]) if case.studies else np.array([row]),
        text_tower=text_tower,
        texts=tuple(Source(modality="text", text=str(number)) for number in numbers),
        known=known,
    )
    accelerator = make_accelerator(device, case.amp)
    if case.scale:  # as with 16 bits on a GPU
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=case.scale)
    runner = Runner(
        model=model,
        feed=feed,
        accelerator=accelerator,
        batch_size=case.batch,
        accumulate=case.accumulate,
        last_step=3,
        seed=5,
    )
    policy = Policy.parse("none" if case.frozen else "all")
    group = {"name": "all", "params": list(model.parameters()), "lr": 0.05, "weight_decay": 0.0}
    course = Course(
        epochs=2,
        schedule="constant",
        by="step",
        warmup=0.0,
        floor=0.0,
        clip_norm=1.0,
        judge_every=case.judge_every,
        patience=None,
    )
    return Loop(runner, policies={"tower": policy, "text_tower": policy}, groups=[group], course=course)


def weights(loop: Loop) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in loop.model.named_parameters()}


def first_gradients(case: Case) -> dict[str, Tensor]:
    """Return the gradients of a first step, before they are clipped, under ``loss`` its loss."""
    loop = make_loop(case)
    loop._set_modes(0)
    loop._gradients.wrap(anew=False)
    losses = loop._gradients.add(loop._steps(np.arange(SIZE), 0)[0], 0, 0)
    named = loop.model.named_parameters()
    return {"loss": torch.tensor(losses["loss"]), **{name: each.grad for name, each in named if each.grad is not None}}


def trained(case: Case, folder: Path) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Return the weights after all steps, and what was told at looks."""
    loop = make_loop(case)
    told: list[dict[str, float]] = []
    tracker: Any = SimpleNamespace(log=lambda step, values: told.append({"step": step, **values}))

    def judge() -> tuple[dict[str, float], float]:
        losses = dict(loop.runner.evaluate(np.arange(0, SIZE, 3)).losses)
        return losses, losses["loss"]

    loop.run(
        np.arange(SIZE),
        state=Progressed(run="run"),
        checkpoints=Checkpoints(folder, loop.changing),
        judge=judge,
        trackers=[tracker],
        progress=Silent(),
    )
    return weights(loop), [values for values in told if "val/loss" in values]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], within: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Softmax takes no notice of a key's bias: its gradient is rounding alone, which Adam makes as large as others.
        if not name.endswith("key_value.bias"):
            torch.testing.assert_close(found[name], tensor, atol=within, rtol=within, msg=lambda said, n=name: n + said)


@pytest.mark.parametrize("names", SETS)
def test_gradients_and_weights_of_passes_are_those_of_the_batch(names: str, tmp_path: Path) -> None:
    whole, parts = Case(names), Case(names, batch=4, accumulate=3)
    expected = first_gradients(whole)
    assert expected["tower.network.0.weight"].abs().sum() > 1e-3
    assert_same(first_gradients(parts), expected, 2e-6)
    (one, curves), (other, others) = trained(whole, tmp_path / "whole"), trained(parts, tmp_path / "parts")
    assert_same(other, one, 2e-5)
    for ours, theirs in zip(others, curves, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_studies_are_aggregated_in_every_pass() -> None:
    whole, parts = Case("contrastive", studies=True), Case("contrastive", batch=4, accumulate=3, studies=True)
    expected = first_gradients(whole)
    assert expected["aggregator.query"].abs().sum() > 0
    assert_same(first_gradients(parts), expected, 2e-6)


def test_frozen_towers_leave_the_projection_its_gradients() -> None:
    whole, parts = Case("sigmoid", frozen=True), Case("sigmoid", batch=4, accumulate=3, frozen=True)
    expected = first_gradients(whole)
    assert expected.keys() == {
        "loss",
        "tower.projection.weight",
        *(f"objectives.sigmoid.similarity.logit_{each}" for each in ("scale", "bias")),
    }
    assert_same(first_gradients(parts), expected, 2e-6)


def test_half_precision_is_near_full_precision() -> None:
    case = {"objectives": "contrastive+captioning", "batch": 4, "accumulate": 3}
    full, half = first_gradients(Case(**case)), first_gradients(Case(**case, amp="bf16"))
    for name, gradient in full.items():
        assert (half[name] - gradient).norm() <= 0.05 * gradient.norm() + 1e-3, name
    assert not torch.equal(half["loss"], full["loss"])


def test_gradients_of_a_scaled_loss_are_scaled() -> None:
    case = {"objectives": "contrastive+captioning", "batch": 4, "accumulate": 3}
    plain, scaled = first_gradients(Case(**case)), first_gradients(Case(**case, scale=1024.0))
    assert scaled.pop("loss") == plain.pop("loss")
    assert_same({name: gradient / 1024 for name, gradient in scaled.items()}, plain, 1e-6)


def test_a_checkpoint_has_the_scale_of_the_gradients(tmp_path: Path) -> None:
    loop, other = make_loop(Case("sigmoid", scale=512.0)), make_loop(Case("sigmoid", scale=1024.0))
    state = Progressed(run="run", step=1)
    loop.accelerator.scaler.scale(torch.ones(()))
    Checkpoints(tmp_path, loop.changing).save(state, loop.model, loop.stateful)
    Checkpoints(tmp_path, other.changing).load(state, other.model, other.stateful)
    assert other.accelerator.scaler.get_scale() == 512.0


def test_both_passes_drop_the_same_out() -> None:
    """The gradient of a step with drop-out is the derivative of its loss along itself."""
    case = Case("contrastive", batch=4, accumulate=3, dropout=0.5)
    gradients = first_gradients(case)
    assert first_gradients(case)["loss"] == gradients["loss"]
    loop = make_loop(case)
    loop._set_modes(0)
    loop._gradients.wrap(anew=False)
    steps, size = loop._steps(np.arange(SIZE), 0)[0], 1e-3
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, each in loop.model.named_parameters():
                if name in gradients:
                    each += sign * size * gradients[name] * (1 if sign == 1 else 2)
        found.append(loop._gradients.add(steps, 0, 0)["loss"])
    squares = sum(float(each.square().sum()) for name, each in gradients.items() if name != "loss")
    assert (found[0] - found[1]) / (2 * size) == pytest.approx(squares, rel=0.02)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_rows_of_a_step_are_split_evenly_and_stay_in_order(processes: int) -> None:
    passes = steps_of(np.arange(23), batch_size=5, accumulate=4, processes=processes)[0]
    parts = split(passes, processes)
    assert len(parts) == len(passes)
    by_process = [np.concatenate(each) for each in zip(*parts, strict=True)]
    assert np.concatenate(by_process).tolist() == np.concatenate(passes).tolist()
    sizes = [len(rows) for each in parts for rows in each]
    assert max(sizes) - min(sizes) <= 1


def two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT="0")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for names in SETS:
        case = Case(names, batch=4, accumulate=3, judge_every=2)
        found[names] = {"gradients": first_gradients(case), "trained": trained(case, Path(folder) / names)}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(two, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("names", SETS)
def test_two_processes_make_the_steps_of_one(two_processes: list[dict[str, Any]], names: str, tmp_path: Path) -> None:
    expected = first_gradients(Case(names))
    one, _ = trained(Case(names), tmp_path / "epochs")
    looking, curves = trained(Case(names, judge_every=2), tmp_path / "looks")
    assert all(torch.equal(looking[name], one[name]) for name in one)
    for found in two_processes:
        assert_same(found[names]["gradients"], expected, 2e-6)
        assert_same(found[names]["trained"][0], one, 2e-5)
    told = two_processes[0][names]["trained"][1]
    assert [values["step"] for values in told] == [2, 4, 6]
    for ours, theirs in zip(told, curves, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-4)
