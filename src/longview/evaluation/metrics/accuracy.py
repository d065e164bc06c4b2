"""Metrics of where the one target of each user is ranked: HR, NDCG, MRR.

Every function takes `rank` (n,) float64, 1 is best and infinite a miss, and returns one value a user (n,); the
metric is their mean. A mean rank of ties may be a half: 10.5 is outside the top 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating[Any]]


def hit(rank: Values, k: int) -> Values:
    """HR@k: 1 where the target is in the top k, else 0. With one target this is Recall@k."""
    return (rank <= k).astype(np.float64)


def ndcg(rank: Values, k: int) -> Values:
    """NDCG@k: 1 / log2(rank + 1) where the target is in the top k, else 0. With one target the ideal DCG is 1."""
    return np.where(rank <= k, 1 / np.log2(rank + 1), 0.0)


def reciprocal_rank(rank: Values, k: int | None = None) -> Values:
    """MRR, or MRR@k: 1 / rank, 0 where the target is a miss or below the top k."""
    return 1 / rank if k is None else np.where(rank <= k, 1 / rank, 0.0)


def accuracy(rank: Values, ks: Sequence[int]) -> dict[str, Values]:
    """Return every accuracy metric by name, one value a user each: `hr@10`, `ndcg@10`, `mrr`, `mrr@10`."""
    values = {f"hr@{k}": hit(rank, k) for k in ks}
    values |= {f"ndcg@{k}": ndcg(rank, k) for k in ks}
    return values | {"mrr": reciprocal_rank(rank)} | {f"mrr@{k}": reciprocal_rank(rank, k) for k in ks}
