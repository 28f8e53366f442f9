"""Two processes give the gradients of one: losses of pairs and means over unequal batches, through DDP on gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from data.task import Task
from finetune.gather import gather_rows, joint_mean
from finetune.objectives.classification import Classification
from finetune.objectives.contrastive import Contrastive
from finetune.objectives.sigmoid import Sigmoid
from finetune.objectives.triplet import Triplet
from finetune.outputs import Objective, Outputs

SIZE, DIM = 9, 6
IDS = torch.tensor([0, 1, 2, 0, 3, 4, 1, 5, 0])
WEIGHTS = torch.tensor([1.0, 3.0, 0.5, 0.0, 2.0, 1.0, 1.0, 4.0, 0.2])
LABELS = torch.tensor([0, 1, -1, -1, 2, 2, 0, 1, 1])
# Unequal shares, and one process with a whole batch and one without rows.
SHARES = {"even": (0, 5), "uneven": (0, 7), "empty": (0, 9)}
TASK = Task(kind="multiclass", targets=("label",), classes=("a", "b", "c"))


def objectives() -> dict[str, Objective]:
    torch.manual_seed(1)
    return {
        "contrastive": Contrastive(),
        "sigmoid": Sigmoid(bias=-1.0),
        "contrastive-targets": Contrastive(positives="target"),
        "sigmoid-balanced": Sigmoid(bias=-1.0, balance="auto", clamp=30, entropy_weight=0.1, positives="target"),
        "sigmoid-weights": Sigmoid(bias=-1.0, positive_weight=2.0, negative_weight=0.5),
        "triplet-roll": Triplet(),
        "triplet-random": Triplet(negative="random", seed=3),
        "classification": Classification(task=TASK, dim=4, targets=LABELS.numpy(), class_weight="balanced"),
        "teacher": Classification(task=TASK, dim=4, targets=LABELS.numpy(), teacher_weight=0.7),
    }


class Towers(nn.Module):
    def __init__(self, objective: Objective) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(DIM, 4), nn.Linear(DIM, 4)
        self.objective = objective

    def forward(self, images: Tensor, texts: Tensor, ids: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        outputs = Outputs(
            vectors=self.image(images),
            texts=self.text(texts),
            text_ids=ids,
            targets=labels,
            target_ids=torch.where(labels < 0, -1 - ids, labels),
            weights=weights,
            taught=images[:, :3].softmax(dim=1),
        )
        return self.objective(outputs)


def samples() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(SIZE, DIM, generator=generator) for _ in range(2))
    return images, texts, IDS, LABELS, WEIGHTS


def gradients(network: nn.Module) -> dict[str, Tensor]:
    named = network.named_parameters()
    return {name.removeprefix("module."): each.grad.clone() for name, each in named if each.grad is not None}


def train(rank: int, address: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name, objective in objectives().items():
        for share, (start, cut) in SHARES.items():
            own = slice(start, cut) if rank == 0 else slice(cut, SIZE)
            network = DistributedDataParallel(Towers(objective), find_unused_parameters=True)
            loss = network(*(each[own] for each in samples()))
            loss.backward()
            mean = loss.detach().clone()
            distributed.all_reduce(mean)
            found[f"{name}/{share}"] = {"loss": mean / 2, **gradients(network)}
            objective.zero_grad()
    found["order"] = gather_rows(torch.full((rank + 1, 2), rank))
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(train, (f"file://{folder}/meeting", str(folder)), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", objectives())
def test_gradients_of_two_processes_are_those_of_one(
    two_processes: list[dict[str, Any]], name: str, share: str
) -> None:
    network = Towers(objectives()[name])
    if name == "triplet-random":
        network.objective.drawn += list(SHARES).index(share)
    loss = network(*samples())
    loss.backward()
    expected = {"loss": loss.detach(), **gradients(network)}
    assert expected.keys() >= {"loss", "image.weight"}
    for rank in range(2):
        found = two_processes[rank][f"{name}/{share}"]
        for parameter, value in expected.items():
            assert value.abs().sum() > 0, parameter
            torch.testing.assert_close(found[parameter], value, atol=1e-6, rtol=1e-6, msg=parameter)


def test_rows_come_in_the_order_of_the_processes(two_processes: list[dict[str, Any]]) -> None:
    for found in two_processes:
        assert found["order"].tolist() == [[0, 0], [1, 1], [1, 1]]


def test_one_process_sees_its_own_rows() -> None:
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows
    assert joint_mean(torch.tensor(6.0), torch.tensor(4)).item() == 1.5
    assert joint_mean(torch.tensor(0.0), torch.tensor(0)).item() == 0
