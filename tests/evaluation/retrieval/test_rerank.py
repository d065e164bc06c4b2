"""k-reciprocal re-ranking against its definition, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from longview.errors import InputError
from longview.evaluation.retrieval import Embedded, RerankConfig, RetrievalConfig, evaluate_retrieval, rerank
from longview.evaluation.retrieval.reference import reference_rerank
from longview.evaluation.retrieval.rerank import reranked_blocks


def directions(count: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 4, generator=random, dtype=torch.float64), dim=1)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(0, 6),
    images=st.integers(1, 20),
    k1=st.integers(1, 8),
    k2=st.integers(1, 4),
    block=st.sampled_from([None, 1, 30]),
)
def test_distances_are_those_of_the_definition(
    seed: int, queries: int, images: int, k1: int, k2: int, block: int | None
) -> None:
    config = RerankConfig(k1=k1, k2=min(k2, k1 + 1))
    points = directions(queries + images, seed)
    expected = reference_rerank((1 - points @ points.T).numpy(), config)
    expected = expected[:queries, queries:] if queries else expected
    asked = points[:queries] if queries else None
    found = torch.cat([scores for _, scores in reranked_blocks(asked, points[queries:], config, block)])
    np.testing.assert_allclose(-found.numpy(), expected, atol=1e-10)


def test_parts_of_the_postings_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = directions(40, 0)
    whole = torch.cat([scores for _, scores in reranked_blocks(None, points, RerankConfig(), None)])
    monkeypatch.setattr(rerank, "POSTINGS", 7)
    parts = torch.cat([scores for _, scores in reranked_blocks(None, points, RerankConfig(), None)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)


def test_weight_one_keeps_the_plain_order() -> None:
    images = Embedded(directions(60, 1), np.arange(60) % 6)
    plain = evaluate_retrieval(images, config=RetrievalConfig(resamples=0))
    kept = evaluate_retrieval(images, config=RetrievalConfig(resamples=0, rerank=RerankConfig(weight=1)))
    assert kept["metrics"] == plain["metrics"]
    assert "k-reciprocal" in kept["protocol"]


def test_chains_of_neighbours_are_followed() -> None:
    """Classes are arcs: ends of an arc are far apart, but the images between vouch for them."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 40)
    angle = labels * np.pi / 3 + np.tile(np.linspace(0, 0.8 * np.pi / 3, 40), 6) + generator.normal(0, 0.01, 240)
    images = Embedded(torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], 1)), labels)
    plain = evaluate_retrieval(images, config=RetrievalConfig(resamples=0))["metrics"]["map@r"]
    better = evaluate_retrieval(images, config=RetrievalConfig(resamples=0, rerank=RerankConfig()))["metrics"]["map@r"]
    assert better > plain + 0.02


def test_a_query_in_a_gallery_of_its_own_is_refused() -> None:
    images = Embedded(directions(5, 2), range(5), ids=range(5))
    other = Embedded(directions(5, 3), range(5), ids=range(4, 9))
    with pytest.raises(InputError, match="1 gallery images are also queries"):
        evaluate_retrieval(images, other, RetrievalConfig(rerank=RerankConfig()))


def test_k2_beyond_the_known_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="k1 \\+ 1"):
        RerankConfig(k1=3, k2=5)
