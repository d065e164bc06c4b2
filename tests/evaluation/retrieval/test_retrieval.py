"""Retrieval: every metric against its definition, queries left out by id, ties, closed forms, bad input."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longview.errors import InputError
from longview.evaluation.metrics.retrieval import average_precision_at_r, cumulative_match, r_precision
from longview.evaluation.retrieval import Embedded, RetrievalConfig, evaluate_retrieval, per_class, rank_retrieval
from longview.evaluation.retrieval.embedded import comparable
from longview.evaluation.retrieval.reference import reference_query
from longview.evaluation.retrieval.report import class_intervals, query_intervals, retrieval_metrics

RECALL = (1, 2, 5)
PLAIN = RetrievalConfig(recall_at=RECALL, similarity="dot", resamples=0)


def whole(*shape: int, seed: int) -> torch.Tensor:
    """Small whole numbers: products are exact, and ties are many."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 12),
    images=st.integers(1, 25),
    classes=st.integers(1, 6),
    block=st.sampled_from([None, 1, 40]),
    leave_one_out=st.booleans(),
)
def test_metrics_are_those_of_the_definition(
    seed: int, queries: int, images: int, classes: int, block: int | None, leave_one_out: bool
) -> None:
    random = np.random.default_rng(seed)
    ids = random.integers(0, 30, queries + images)  # repeats: some queries are in the gallery, some of them twice
    labels = random.integers(0, classes, queries + images)
    vectors = whole(queries + images, 3, seed=seed)
    gallery = Embedded(vectors[queries:], labels[queries:], ids[queries:])
    asked = gallery if leave_one_out else Embedded(vectors[:queries], labels[:queries], ids[:queries])
    ranks = rank_retrieval(asked, None if leave_one_out else gallery, PLAIN.model_copy(update={"block": block}))
    found = retrieval_metrics(ranks, RECALL)
    for row in range(len(asked)):
        scores = (gallery.vectors @ asked.vectors[row]).tolist()
        relevant = (np.asarray(gallery.labels) == asked.labels[row]).tolist()
        own = (np.asarray(gallery.ids) == asked.ids[row]).tolist()  # type: ignore[index]
        expected = reference_query(scores, relevant, own, list(RECALL))
        assert {name: column[row] for name, column in found.items()} == pytest.approx(expected, abs=1e-12)


def test_blocks_change_nothing() -> None:
    images = Embedded(torch.randn(90, 8, generator=torch.Generator().manual_seed(1)), np.arange(90) % 7)
    once = rank_retrieval(images, config=PLAIN)
    for block in (1, 90, 1000):
        again = rank_retrieval(images, config=PLAIN.model_copy(update={"block": block}))
        np.testing.assert_array_equal(again.first_rank, once.first_rank)
        np.testing.assert_array_equal(again.neighbours, once.neighbours)


def test_classes_apart_are_found_perfectly() -> None:
    vectors = torch.eye(5).repeat_interleave(4, 0) + 0.01 * torch.randn(20, 5)
    report = evaluate_retrieval(Embedded(vectors, [f"class {i // 4}" for i in range(20)]))
    assert set(report["metrics"].values()) == {1.0}
    assert report["intervals"]["recall@1"] == report["class_intervals"]["recall@1"] == [1.0, 1.0]
    assert report["queries_without_relevant"] == 0


def test_random_embeddings_reach_what_chance_gives() -> None:
    """C classes of m images: R-precision is (m − 1) / (n − 1), Recall@K is 1 − the odds of K misses in a row."""
    classes, size = 20, 6
    total, precision, recall = classes * size, [], []
    for seed in range(25):
        vectors = torch.randn(total, 16, generator=torch.Generator().manual_seed(seed))
        metrics = evaluate_retrieval(Embedded(vectors, np.arange(total) % classes), config=PLAIN)["metrics"]
        precision.append(metrics["r_precision"])
        recall.append(metrics["recall@5"])
    others, right = total - 1, size - 1
    missed = np.prod([(others - right - i) / (others - i) for i in range(5)])
    assert np.mean(precision) == pytest.approx(right / others, rel=0.1)
    assert np.mean(recall) == pytest.approx(1 - missed, rel=0.1)


def test_alternating_list_has_the_closed_form_of_map_at_r() -> None:
    """Right at places 1, 3, 5, …: the j-th right one has precision j / (2j − 1)."""
    for size in (1, 2, 5, 8):
        relevant = (np.arange(2 * size) % 2 == 0)[None]
        expected = sum(j / (2 * j - 1) for j in range(1, (size + 1) // 2 + 1)) / size
        assert average_precision_at_r(relevant, np.array([size]))[0] == pytest.approx(expected)
        assert r_precision(relevant, np.array([size]))[0] == pytest.approx((size + 1) // 2 / size)


def test_equal_scores_keep_the_order_of_the_gallery_and_are_counted() -> None:
    gallery = Embedded(torch.ones(6, 2), [0, 0, 1, 1, 2, 2])
    ranks = rank_retrieval(Embedded(torch.ones(1, 2), [1]), gallery, PLAIN)
    assert ranks.neighbours.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert ranks.first_rank.tolist() == [3.0]
    assert evaluate_retrieval(gallery, config=PLAIN)["tied_first"] == 6


def test_a_query_is_left_out_by_id_not_by_likeness() -> None:
    vectors = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    twins = rank_retrieval(Embedded(vectors, [0, 0, 1], ids=["a", "b", "c"]), config=PLAIN)
    assert twins.neighbours[0].tolist() == [1, 2, -1]  # the twin stays, the image itself does not
    gallery = Embedded(vectors.flip(0), [1, 0, 0], ids=["c", "b", "a"])
    other = rank_retrieval(Embedded(vectors, [0, 0, 1], ids=["a", "b", "c"]), gallery, PLAIN)
    assert other.neighbours[0].tolist() == [1, 0, -1]


def test_query_classes_absent_from_the_gallery_are_misses_and_named() -> None:
    queries = Embedded(torch.eye(3), ["bag", "hat", "shoe"])
    gallery = Embedded(torch.eye(3)[:2], ["bag", "shoe"])
    report = evaluate_retrieval(queries, gallery, PLAIN)
    assert report["queries_without_relevant"] == 1
    assert report["classes_without_relevant"] == ["hat"]
    assert report["metrics"]["recall@5"] == pytest.approx(2 / 3)
    alone = evaluate_retrieval(Embedded(torch.eye(3), ["a", "a", "b"]), config=PLAIN)
    assert alone["classes_without_relevant"] == ["b"]  # its only image is the query


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_similarities_order_as_they_should(similarity: str) -> None:
    generator = torch.Generator().manual_seed(3)
    q = Embedded(torch.randn(4, 6, generator=generator, dtype=torch.float64) + 5, range(4))
    g = Embedded(torch.randn(9, 6, generator=generator, dtype=torch.float64) + 5, range(9))
    left, right = comparable(q, g, similarity)  # type: ignore[arg-type]
    expected = {
        "cosine": torch.cosine_similarity(q.vectors[:, None], g.vectors, dim=2),
        "dot": q.vectors @ g.vectors.T,
        "euclidean": -torch.cdist(q.vectors, g.vectors).square(),
    }[similarity]
    torch.testing.assert_close(left @ right.T, expected)


def test_the_match_curve_is_recall_at_every_k() -> None:
    first_rank = np.array([1.0, 4.0, np.inf, 2.0])
    curve = cumulative_match(first_rank, 5)
    assert curve.tolist() == [float((first_rank <= k).mean()) for k in range(1, 6)]


def test_drawing_queries_is_drawing_rows_and_classes_move_together() -> None:
    labels = np.repeat(np.arange(30), 10)
    values = {"recall@1": np.repeat(np.random.default_rng(0).random(30) < 0.5, 10).astype(float)}
    by_query, by_class = query_intervals(values)["recall@1"], class_intervals(values, labels)["recall@1"]
    ratio = np.ptp(by_class) / np.ptp(by_query)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)  # ten queries of a class are as good as one
    assert class_intervals(values, labels, seed=1) == class_intervals(values, labels, seed=1)


def test_classes_are_listed_worst_first() -> None:
    vectors = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, -1], [-1, 0]])
    rows = per_class(rank_retrieval(Embedded(vectors, ["a", "a", "b", "b", "c"]), config=PLAIN))
    assert [row["class"] for row in rows][-1] == "a"
    assert rows[-1] | {"recall@1": 1.0, "map@r": 1.0, "queries": 2, "gallery": 2, "map@r_se": 0.0} == rows[-1]
    assert next(row for row in rows if row["class"] == "c")["map@r_se"] is None


def test_bad_input_is_named() -> None:
    good = Embedded(torch.eye(3), [0, 1, 2])
    broken = torch.eye(3)
    broken[1, 2] = torch.nan
    cases = {
        "rows 1": lambda: Embedded(broken, [0, 1, 2]),
        "2 labels": lambda: Embedded(torch.eye(3), [0, 1]),
        "no image": lambda: Embedded(torch.zeros(0, 3), []),
        "got list": lambda: Embedded([[1.0]], [0]),  # type: ignore[arg-type]
        "1 of 2 samples (1) have no label": lambda: rank_retrieval(Embedded(torch.eye(2), ["a", None])),
        "gallery: 1 of 3 samples (0) have a negative label": lambda: rank_retrieval(
            good, Embedded(torch.eye(3), [-1, 0, 1])
        ),
        "dimension 3 but the gallery has 2": lambda: rank_retrieval(good, Embedded(torch.eye(2), [0, 1])),
        "ids to both": lambda: rank_retrieval(good, Embedded(torch.eye(3), [0, 1, 2], ids=[1, 2, 3])),
        "R = 3": lambda: r_precision(np.ones((1, 2), bool), np.array([3])),
    }
    for message, call in cases.items():
        with pytest.raises(InputError, match=re.escape(message)):
            call()
