"""Logs to prepared data sets on disk, and from there to jagged batches."""

from longview.data.batches import HistoryBatches, JaggedBatch, TrainingBatches
from longview.data.dataset import PreparedData
from longview.data.splits import EvaluationSet, Split

__all__ = ["EvaluationSet", "HistoryBatches", "JaggedBatch", "PreparedData", "Split", "TrainingBatches"]
