"""Which users and items stay: repeated until every user and every item has its minimum of events (a k-core)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longview.config import Config
from longview.data.encode import Report
from longview.data.spool import Spool
from longview.errors import InputError

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


class Removed(Config):
    """What one filter removed, over all rounds."""

    filter: str
    users: int = 0
    items: int = 0
    events: int = 0


@dataclass(frozen=True)
class Kept:
    """The users and items that stay, their events, and what each filter removed in `rounds` rounds."""

    users: Mask
    items: Mask
    user_events: Counts
    item_events: Counts
    removed: tuple[Removed, ...]
    rounds: int


def filter_rows(spool: Spool, *, min_user_events: int, min_item_events: int, report: Report) -> Kept:
    """Choose users and items such that each has its minimum of events among those of the others.

    Each round drops rare items, then short users; the result does not depend on that order, what each filter is
    said to remove does. A user or item left with no event at all goes with the filter that took its last one.

    Raises:
        InputError: nothing is left; the message says which filter took the last events.
    """
    kept = [np.ones(int(spool_max), bool) for spool_max in _sizes(spool)]
    counts = _count(spool, kept)
    most = [int(c.max(initial=0)) for c in counts]
    minimum = (min_user_events, min_item_events)
    names = (f"min_user_events={min_user_events}", f"min_item_events={min_item_events}")
    removed = [np.zeros(3, np.int64), np.zeros(3, np.int64)]
    rounds, changed = 0, True
    while changed and max(minimum) > 1:
        changed, rounds = False, rounds + 1
        for side in (1, 0):
            low = kept[side] & (counts[side] < minimum[side])
            if not low.any():
                continue
            report("filtering", rounds, 0)
            changed = True
            before = int(counts[0].sum())
            kept[side] &= ~low
            counts = _count(spool, kept)
            empty = kept[1 - side] & (counts[1 - side] == 0)
            kept[1 - side] &= ~empty
            removed[side][side] += np.count_nonzero(low)
            removed[side][1 - side] += np.count_nonzero(empty)
            removed[side][2] += before - int(counts[0].sum())
            if not kept[side].any() or not kept[1 - side].any():
                raise InputError(_nothing_left(names[side], side, most[side]))
    found = tuple(
        Removed(filter=names[side], users=int(r[0]), items=int(r[1]), events=int(r[2]))
        for side, r in enumerate(removed)
        if minimum[side] > 1
    )
    return Kept(kept[0], kept[1], counts[0], counts[1], found, rounds)


def _nothing_left(name: str, side: int, most: int) -> str:
    what = ("user", "item")[side]
    return (
        f"no event is left: {name} removed the last ones (before filtering, the {what} with most events has {most:,}); "
        f"lower it (--{name.split('=')[0].replace('_', '-')})"
    )


def _sizes(spool: Spool) -> tuple[int, int]:
    users = items = 0
    for _, rows in spool.chunks("user", "item"):
        users, items = max(users, int(rows["user"].max()) + 1), max(items, int(rows["item"].max()) + 1)
    return users, items


def _count(spool: Spool, kept: list[Mask]) -> tuple[Counts, Counts]:
    users, items = (np.zeros(len(mask), np.int64) for mask in kept)
    for _, rows in spool.chunks("user", "item"):
        alive = kept[0][rows["user"]] & kept[1][rows["item"]]
        users += np.bincount(rows["user"][alive], minlength=len(users))
        items += np.bincount(rows["item"][alive], minlength=len(items))
    return users, items
