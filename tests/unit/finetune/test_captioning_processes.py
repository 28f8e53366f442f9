"""Captions spread unevenly over two processes: gradients of the joint batch."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, os, sys
import torch
from torch import distributed
from types import SimpleNamespace
from finetune.objectives.captioning import Captioning
from finetune.outputs import Outputs

rank = 0 if os.fork() else 1
torch.manual_seed(0)
tokenizer = SimpleNamespace(vocabulary=11)
sizes = dict(layers=1, heads=2, dim=8, feedforward=8, positions=8, max_length=8, dropout=0)
objective = Captioning(tokenizer=tokenizer, token_dim=4, **sizes)
memory, ids = torch.randn(5, 3, 4), torch.randint(0, 11, (5, 7))
mask = torch.arange(7) < torch.tensor([7, 6, 3, 3, 4])[:, None]

def gradients(rows):
    objective.zero_grad()
    loss = objective(Outputs(tokens=memory[rows], captions=ids[rows], caption_mask=mask[rows]))
    loss.backward()
    return torch.cat([loss.detach()[None], *(each.grad.flatten() for each in objective.parameters())])

shares = (slice(0, 2), slice(2, 5))
joint, naive = gradients(slice(None)), sum(map(gradients, shares)) / 2
distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
found = gradients(shares[rank])
distributed.all_reduce(found)
distributed.destroy_process_group()
if rank:
    os._exit(0)
print(json.dumps([float((each - joint).abs().max()) for each in (found / 2, naive)]))
"""


def test_loss_and_gradients_over_two_processes_are_those_of_one(tmp_path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "meeting")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    found, mean_of_means = json.loads(done.stdout)
    assert found < 1e-6
    assert mean_of_means > 1e-3
