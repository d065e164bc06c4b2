"""Results by how much is known of a user: one row for each range of history length."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from longview.evaluation.metrics import hit, ndcg
from longview.evaluation.ranking import Ranks

EDGES = (1, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
MIN_USERS = 30


def by_history(ranks: Ranks, k: int = 10, *, min_users: int = MIN_USERS) -> list[dict[str, Any]]:
    """Return `{"from", "to", "users", "hr@k", "ndcg@k"}` for ranges of history length, shortest first.

    `from` and `to` are events before the target, both inclusive; the last range is open, its `to` None. Ranges of
    fewer than `min_users` users, whose figures would be noise, are joined to a neighbour.
    """
    places = np.searchsorted(EDGES, ranks.history, side="right") - 1
    begins = _begins(np.bincount(places), min_users)
    group = np.searchsorted(begins, places, side="right") - 1
    rows = []
    for number, begin in enumerate(begins):
        rank = ranks.rank[group == number]
        rows.append(
            {
                "from": EDGES[begin],
                "to": EDGES[begins[number + 1]] - 1 if number + 1 < len(begins) else None,
                "users": len(rank),
                f"hr@{k}": float(hit(rank, k).mean()),
                f"ndcg@{k}": float(ndcg(rank, k).mean()),
            }
        )
    return rows


def _begins(counts: npt.NDArray[np.int64], min_users: int) -> list[int]:
    """Return the ranges that begin a group, such that every group has `min_users` users where there are as many."""
    begins: list[int] = []
    filled = 0
    for place in np.flatnonzero(counts).tolist():
        if not begins or (filled >= min_users and counts[place:].sum() >= min_users):
            begins.append(place)
            filled = 0
        filled += int(counts[place])
    return begins
