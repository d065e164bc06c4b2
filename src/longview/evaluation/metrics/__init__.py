"""Metrics, one family a file."""

from longview.evaluation.metrics.accuracy import accuracy, hit, ndcg, reciprocal_rank
from longview.evaluation.metrics.lists import coverage, list_metrics, new_items, new_share, novelty, popular_share

__all__ = [
    "accuracy",
    "coverage",
    "hit",
    "list_metrics",
    "ndcg",
    "new_items",
    "new_share",
    "novelty",
    "popular_share",
    "reciprocal_rank",
]
