"""Retrieval among embeddings: which gallery images come first for a query image, and how right they are."""

from longview.evaluation.retrieval.embedded import Embedded
from longview.evaluation.retrieval.evaluate import RetrievalConfig, evaluate_retrieval, rank_retrieval
from longview.evaluation.retrieval.ranking import RetrievalRanks
from longview.evaluation.retrieval.report import per_class, retrieval_report
from longview.evaluation.retrieval.rerank import RerankConfig

__all__ = [
    "Embedded",
    "RerankConfig",
    "RetrievalConfig",
    "RetrievalRanks",
    "evaluate_retrieval",
    "per_class",
    "rank_retrieval",
    "retrieval_report",
]
