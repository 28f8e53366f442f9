"""Views: what each row of a bag shows, such as the angle of the camera; a head may learn a vector of each.

The names are learned from training rows. A name that was not among them, and none at all, are one view: unknown.
Bags are not padded, so "no row" is no view. Augmented views, copies of one picture, are `heads.augmented`'s.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heads.bags import Bags
from heads.catalog import list_heads, takes_views
from heads.errors import HeadError

if TYPE_CHECKING:
    from heads.base import Head
    from heads.config import FittingConfig
    from heads.samples import Instances

MAX_VIEWS = 256
"""Views that can be learned; a column with more of them names its rows, and not what they show."""
MOST_NAMED = 5
"""Unknown views that a remark names."""


def known_views(views: NDArray[Any]) -> list[str]:
    """Return the names among the views of instances, in order.

    Raises
    ------
    HeadError
        If there are too many.
    """
    known = sorted({str(name) for name in views.tolist() if name not in (None, "")})
    if len(known) > MAX_VIEWS:
        raise HeadError(
            f"{len(known):,} views, such as {known[0]!r}; expected at most {MAX_VIEWS} kinds of pictures, each on many "
            f"rows: choose another column, or leave the views out"
        )
    return known


def coded(bags: Bags, known: list[str] | None) -> Bags:
    """Return bags with numbers for views: 0 for unknown, then one for each known name; as they are if none is."""
    if known is None:
        return bags
    number = {name: code for code, name in enumerate(known, start=1)}
    names = [""] * len(bags.values) if bags.views is None else bags.views.tolist()
    return bags.with_views(np.array([number.get(str(name), 0) for name in names], dtype=np.int64))


def refuse_bag_views(config: FittingConfig, head: str) -> None:
    """Raise HeadError where views are named that a head has no use for, or that belong to no bag."""
    if config.view is None:
        return
    if config.bag is None:
        raise HeadError(
            f"--view {config.view}: a view is what a row of a bag shows, and there are no bags; name their column "
            f"with --bag, or leave --view out"
        )
    if not takes_views(head):
        able = ", ".join(name for name in list_heads() if takes_views(name))
        raise HeadError(f"--view {config.view}: head {head} learns nothing from views; leave it out, or use {able}")


def view_remark(head: Head, instances: Instances) -> list[str]:
    """Remark on rows whose view a fitted head does not know."""
    known = getattr(head, "views_", None)
    if known is None:
        return []
    views = instances.views
    names = [""] * len(instances.manifest) if views is None else views.tolist()
    unknown = Counter(name or "none" for name in names if name not in known)
    if not unknown:
        return []
    found = ", ".join(f"{name}: {count:,}" for name, count in unknown.most_common(MOST_NAMED))
    more = "" if len(unknown) <= MOST_NAMED else f" and {len(unknown) - MOST_NAMED} more"
    total = f"{unknown.total():,} of {len(names):,} rows"
    return [f"{total} are of views that the head did not learn ({found}{more}); it takes them as unknown"]
