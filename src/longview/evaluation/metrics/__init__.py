"""Metrics, one family a file."""

from longview.evaluation.metrics.accuracy import accuracy, hit, ndcg, reciprocal_rank
from longview.evaluation.metrics.calibration import calibration_error, reliability
from longview.evaluation.metrics.classification import auc, gauc, log_loss, normalised_entropy, user_auc
from longview.evaluation.metrics.lists import coverage, list_metrics, new_items, new_share, novelty, popular_share
from longview.evaluation.metrics.regression import absolute_error, root_squared_error

__all__ = [
    "absolute_error",
    "accuracy",
    "auc",
    "calibration_error",
    "coverage",
    "gauc",
    "hit",
    "list_metrics",
    "log_loss",
    "ndcg",
    "new_items",
    "new_share",
    "normalised_entropy",
    "novelty",
    "popular_share",
    "reciprocal_rank",
    "reliability",
    "root_squared_error",
    "user_auc",
]
