"""Evaluate a retrieval: leave-one-out within one set, or queries against a gallery of their own."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from longview.config import Config
from longview.errors import InputError
from longview.evaluation.retrieval.embedded import Embedded, Similarity, comparable, numbered, own_places
from longview.evaluation.retrieval.ranking import RetrievalRanks, rank_blocks, score_blocks
from longview.evaluation.retrieval.report import retrieval_report
from longview.evaluation.retrieval.rerank import RerankConfig, reranked_blocks


class RetrievalConfig(Config):
    """How images are compared, and which ranks are reported."""

    recall_at: tuple[int, ...] = Field(default=(1, 10, 20, 30, 40, 100), min_length=1)
    similarity: Similarity = "cosine"
    rerank: RerankConfig | None = Field(default=None, description="k-reciprocal re-ranking; off by default")
    neighbours: int = Field(default=10, ge=1, description="gallery images to keep of each query")
    resamples: int = Field(default=1000, ge=0, description="bootstrap resamples; 0 = no intervals")
    block: int | None = Field(default=None, ge=1, description="scores held at a time; default by device")


def rank_retrieval(
    queries: Embedded, gallery: Embedded | None = None, config: RetrievalConfig | None = None
) -> RetrievalRanks:
    """Rank the gallery for each query, exactly, in blocks: no (queries × gallery) matrix is held.

    Args:
        queries: the query images.
        gallery: where to look; None for leave-one-out, where the gallery is the queries. Images with the id of the
            query are left out in both cases.
        config: how; see `RetrievalConfig`.

    Raises:
        InputError: dimensions that differ, labels of two kinds, ids on one side alone, or re-ranking of a query that
            is also in a gallery of its own.
    """
    config = config or RetrievalConfig()
    gallery = queries if gallery is None else gallery
    ours, theirs, names = numbered(queries, gallery)
    own = own_places(queries, gallery)
    if config.rerank is not None and queries is not gallery and len(own[0]):
        raise InputError(
            f"re-ranking: {len(own[0])} gallery images are also queries (the same id), and would vouch for themselves: "
            "leave them out of the gallery, or evaluate leave-one-out"
        )
    q, g = comparable(queries, gallery, "cosine" if config.rerank is not None else config.similarity)
    if config.rerank is None:
        blocks = score_blocks(q, g, config.block)
    else:
        blocks = reranked_blocks(None if queries is gallery else q, g, config.rerank, config.block)
    return rank_blocks(blocks, (ours, theirs), names, own, min(config.neighbours, len(gallery)))


def evaluate_retrieval(
    queries: Embedded, gallery: Embedded | None = None, config: RetrievalConfig | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """Return the report of a retrieval: metrics, intervals, protocol in words; see `retrieval_report`.

    Example:
        >>> import torch
        >>> vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> images = Embedded(vectors, labels=["shoe", "shoe", "bag", "bag"])
        >>> evaluate_retrieval(images)["metrics"]["recall@1"]
        1.0
    """
    config = config or RetrievalConfig()
    ranks = rank_retrieval(queries, gallery, config)
    words = protocol(queries, gallery, config)
    return retrieval_report(ranks, config.recall_at, words, resamples=config.resamples, seed=seed)


def protocol(queries: Embedded, gallery: Embedded | None, config: RetrievalConfig) -> str:
    """Return in words what is ranked against what, and how."""
    if gallery is None or gallery is queries:
        sets = f"leave-one-out: each of {len(queries)} images queries all others"
    else:
        sets = f"{len(queries)} queries against a gallery of {len(gallery)} images, without those of the query's id"
    how = f"{config.similarity} similarity"
    if config.rerank is not None:
        how = config.rerank.describe()
    return f"{sets}; exact, by {how}; equal scores in gallery order; a query without a relevant image is a miss"
