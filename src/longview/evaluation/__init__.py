"""Metrics, protocols and result cards."""

from longview.evaluation.evaluate import evaluate
from longview.evaluation.ranking import Ranks, rank_targets
from longview.evaluation.report import Report, compare

__all__ = ["Ranks", "Report", "compare", "evaluate", "rank_targets"]
