"""Results by how much is known of a user: one row for each range of history length."""

from __future__ import annotations

from typing import Any

import numpy as np

from longview.evaluation.metrics import hit, ndcg
from longview.evaluation.ranking import Ranks

EDGES = (1, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


def by_history(ranks: Ranks, k: int = 10) -> list[dict[str, Any]]:
    """Return `{"from", "to", "users", "hr@k", "ndcg@k"}` for each range of history length that has users.

    `from` and `to` are events before the target, both inclusive; `to` is None for the last, open range.
    """
    places = np.searchsorted(EDGES, ranks.history, side="right") - 1
    rows = []
    for place in np.unique(places):
        rank = ranks.rank[places == place]
        rows.append(
            {
                "from": EDGES[place],
                "to": EDGES[place + 1] - 1 if place + 1 < len(EDGES) else None,
                "users": len(rank),
                f"hr@{k}": float(hit(rank, k).mean()),
                f"ndcg@{k}": float(ndcg(rank, k).mean()),
            }
        )
    return rows
