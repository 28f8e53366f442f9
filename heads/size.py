"""How many parameters a fitted head has.

Counted are the numbers that training chose and prediction uses: the floats of the learned arrays, and the
thresholds and leaf values of trees. Not counted are statistics of the features (mean, scale, running
averages), training rows that are kept as they are (nearest neighbours and their labels, support vectors),
prompts, and hyperparameters that the fit picked.
"""

from __future__ import annotations

import re

from heads.base import Head

STATISTICS = frozenset(
    {"mean_", "scale_", "center_", "spread_", "constant_", "alpha_", "prompts_", "negative_prompts_"}
)
"""Learned attributes of any head that describe data or prompts, or that were picked and not fitted."""
RUNNING = ("norm.mean", "norm.variance", "prompt.vector", "prompt.vectors")
"""How the names end of arrays among the weights that no gradient reaches."""
TREE_NUMBERS = re.compile(r"^(?:threshold|leaf_value)=(.*)$", re.MULTILINE)


def n_parameters(head: Head) -> int:
    """Return how many parameters a fitted head has.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the head is not fitted.
    """
    state = head.get_state()
    left_out = STATISTICS | head.kept_rows
    arrays = sum(
        array.size
        for name, array in state.arrays.items()
        if array.dtype.kind == "f" and name.partition("/")[0] not in left_out and not name.endswith(RUNNING)
    )
    trees = sum(len(found.split()) for text in state.texts.values() for found in TREE_NUMBERS.findall(text))
    return arrays + trees
