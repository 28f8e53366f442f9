"""A mean over what several processes have in different numbers: tokens of captions, rows of a last batch."""

from __future__ import annotations

from torch import Tensor, distributed


def joint_mean(total: Tensor, count: Tensor) -> Tensor:
    """Return a loss whose gradients, averaged over the processes, are those of the mean over all of them.

    ::

        W * total / (sum of the counts of all W processes)

    A mean of each process's own mean would weigh a term by how few others its process has. The sum of the counts
    takes no part in the gradient, so that one number is all that the processes exchange.

    Parameters
    ----------
    total
        Sum of this process's terms, shape ().
    count
        How many they are, shape (); 0 on all processes gives 0.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return total / count.clamp(min=1)
    joint = count.detach().clone().to(total.dtype)
    distributed.all_reduce(joint)
    return distributed.get_world_size() * total / joint.clamp(min=1)
