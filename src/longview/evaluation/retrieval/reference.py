"""Retrieval and re-ranking written as their definitions say, one query at a time: what the fast path is tested against.

Dense and slow: for tests and small sets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from longview.evaluation.retrieval.rerank import RerankConfig

Matrix = npt.NDArray[np.float64]


def reference_query(scores: list[float], relevant: list[bool], left_out: list[bool], recall_at: list[int]) -> Any:
    """Return the metrics of one query from the scores of the whole gallery, by name."""
    ranked = sorted((place for place in range(len(scores)) if not left_out[place]), key=lambda p: (-scores[p], p))
    right = [relevant[place] for place in ranked]
    num_relevant = sum(right)
    metrics = {f"recall@{k}": float(any(right[:k])) for k in recall_at}
    precisions = [sum(right[: i + 1]) / (i + 1) * right[i] for i in range(num_relevant)]
    metrics["map@r"] = sum(precisions) / num_relevant if num_relevant else 0.0
    metrics["r_precision"] = sum(right[:num_relevant]) / num_relevant if num_relevant else 0.0
    metrics["mrr"] = 1 / (1 + right.index(True)) if num_relevant else 0.0
    return metrics


def reference_rerank(distances: Matrix, config: RerankConfig) -> Matrix:
    """Return the final distance (points, points) of k-reciprocal re-ranking from the plain one."""
    total = len(distances)
    order = []
    for p in range(total):
        others = sorted((x for x in range(total) if x != p), key=lambda x: (distances[p, x], x))
        order.append([p, *others])

    def reciprocal(p: int, k: int) -> set[int]:
        return {x for x in order[p][: k + 1] if p in order[x][: k + 1]}

    encodings = np.zeros((total, total))
    for p in range(total):
        mutual = reciprocal(p, config.k1)
        expanded = set(mutual)
        for c in mutual:
            half = reciprocal(c, round(config.k1 / 2))
            if len(half & mutual) > 2 / 3 * len(half):
                expanded |= half
        columns = sorted(expanded)
        weights = np.exp(-distances[p, columns])
        encodings[p, columns] = weights / weights.sum()
    averaged = np.stack([encodings[order[p][: config.k2]].mean(0) for p in range(total)])
    final = np.zeros((total, total))
    for p in range(total):
        for g in range(total):
            least, most = np.minimum(averaged[p], averaged[g]).sum(), np.maximum(averaged[p], averaged[g]).sum()
            final[p, g] = (1 - config.weight) * (1 - least / most) + config.weight * distances[p, g]
    return final
