"""A tiny data set of impressions: who likes what depends on the user, so that his history tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from longview.data.dataset import PreparedData, write_prepared
from longview.data.meta import SplitSpec

ACTIONS = ("like", "buy")
TASKS = "ranking.tasks=[{name: like, action: like}, {name: stars, strength: rating}]"
SETTINGS = (
    "model.width=16",
    "model.layers=1",
    "model.max_length=8",
    "model.dropout=0",
    "model.embedding.dropout=0",
    "ranking.head.dropout=0",
    "ranking.request_size=3",
    "batches.batch_size=16",
    "optimiser.rate=0.01",
    "optimiser.warmup_steps=2",
    "optimiser.average_decay=0",
    "loop.epochs=2",
    TASKS,
)


def write_ranking(
    path: Path,
    *,
    users: int = 40,
    items: int = 12,
    kind: Literal["leave-last-out", "global-time"] = "global-time",
    seed: int = 0,
    change: Any = None,
) -> PreparedData:
    """Users like the even items or the odd ones; two events in a row share a second. `change(events)` edits columns."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(6, 14, users)
    total, owner = int(lengths.sum()), np.repeat(np.arange(users), lengths)
    item = generator.integers(0, items, total)
    like = (item % 2 == owner % 2) ^ (generator.random(total) < 0.05)
    buy = like & (generator.random(total) < 0.3)
    events: dict[str, Any] = {
        "item": item.astype(np.int32),
        "timestamp": np.concatenate([1_000 + 60 * (np.arange(n) // 2) for n in lengths]).astype(np.int64),
        "action": like.astype(np.int64) | buy.astype(np.int64) << 1,
        "strength_rating": np.where(generator.random(total) < 0.2, np.nan, 1.0 + 3 * like + buy).astype(np.float32),
    }
    if change is not None:
        change(events)
    return write_prepared(
        path,
        name="shop",
        events=events,
        users=pa.table(
            {
                "id": [f"user {u}" for u in range(users)],
                "length": lengths,
                "taste": [("even", "odd")[u % 2] for u in range(users)],
                "age": pa.array([None if u == 3 else 20 + u for u in range(users)], pa.int64()),
            }
        ),
        items=pa.table({"id": [f"item {i}" for i in range(items)]}),
        split=SplitSpec(kind=kind, quantile=0.8),
        actions=ACTIONS,
    )
