"""Metrics against loops that spell out their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longview.evaluation.metrics import (
    accuracy,
    coverage,
    hit,
    list_metrics,
    ndcg,
    new_items,
    new_share,
    novelty,
    popular_share,
    reciprocal_rank,
)

ranks = st.lists(st.one_of(st.integers(2, 80).map(lambda i: i / 2), st.just(math.inf)), min_size=1, max_size=20)


@given(rank=ranks, k=st.integers(1, 50))
def test_accuracy_equals_a_loop(rank: list[float], k: int) -> None:
    expected = {"hr": [], "ndcg": [], "mrr": [], "mrr@k": []}  # type: dict[str, list[float]]
    for r in rank:
        inside = r <= k
        expected["hr"].append(1.0 if inside else 0.0)
        expected["ndcg"].append(1 / math.log2(r + 1) if inside else 0.0)
        expected["mrr"].append(0.0 if r == math.inf else 1 / r)
        expected["mrr@k"].append(1 / r if inside else 0.0)
    values = np.array(rank)
    np.testing.assert_allclose(hit(values, k), expected["hr"])
    np.testing.assert_allclose(ndcg(values, k), expected["ndcg"])
    np.testing.assert_allclose(reciprocal_rank(values), expected["mrr"])
    np.testing.assert_allclose(reciprocal_rank(values, k), expected["mrr@k"])


@given(rank=ranks)
def test_longer_lists_never_score_lower(rank: list[float]) -> None:
    means = {name: values.mean() for name, values in accuracy(np.array(rank), (1, 5, 10)).items()}
    for family in ("hr", "ndcg", "mrr"):
        assert means[f"{family}@1"] <= means[f"{family}@5"] <= means[f"{family}@10"]
    assert means["ndcg@10"] <= means["hr@10"]
    assert means["mrr@10"] <= means["mrr"]


def test_a_tie_across_the_edge_is_outside() -> None:
    assert hit(np.array([10.0, 10.5]), 10).tolist() == [1, 0]


def test_first_place_is_worth_one_and_a_miss_nothing() -> None:
    values = accuracy(np.array([1.0, math.inf]), (10,))
    assert all(v.tolist() == [1.0, 0.0] for v in values.values())


LISTS = np.array([[0, 1, -1], [0, 2, 3]])
COUNTS = np.array([8, 4, 2, 1, 1, 0])


def test_coverage_counts_distinct_items_and_no_empty_places() -> None:
    assert coverage(LISTS, 6) == pytest.approx(4 / 6)


def test_novelty_is_the_mean_information_of_a_recommendation() -> None:
    assert novelty(LISTS, COUNTS) == pytest.approx((1 + 2 + 1 + 3 + 4) / 5)  # shares 1/2, 1/4, 1/2, 1/8, 1/16


def test_an_item_without_events_counts_as_having_one() -> None:
    assert novelty(np.array([[5]]), COUNTS) == pytest.approx(4)


def test_popular_share_is_of_the_top_hundredth_at_least_one_item() -> None:
    assert popular_share(LISTS, COUNTS) == pytest.approx(2 / 5)
    counts = np.arange(200)[::-1]
    assert popular_share(np.array([[0, 1, 2, 3]]), counts) == pytest.approx(0.5), "2 of 200 are popular"


def test_new_share() -> None:
    assert new_share(LISTS, np.array([False, True, False, True, False, False])) == pytest.approx(2 / 5)


def test_empty_lists_are_worth_nothing() -> None:
    empty = np.full((2, 3), -1)
    assert coverage(empty, 6) == novelty(empty, COUNTS) == popular_share(empty, COUNTS) == 0


def test_new_items_are_those_of_the_last_month_of_training_or_never_seen(make_data: Any) -> None:
    day = 86_400
    data = make_data(
        [[0, 1, 2, 3], [0, 4, 0, 0]],
        num_items=5,
        times=[[0, 80 * day, 100 * day, 101 * day], [60 * day, 90 * day, 95 * day, 99 * day]],
    )  # leave-last-out: items 0, 1 of the first user and 0, 4 of the second train; training ends on day 90
    assert new_items(data).tolist() == [False, True, True, True, True]


def test_new_items_of_order_only_data_are_those_never_seen(make_data: Any) -> None:
    data = make_data([[0, 1, 2, 3]], num_items=5)
    assert new_items(data).tolist() == [False, False, True, True, True]


def test_list_metrics_are_named_by_the_length_of_the_lists(random_data: Any) -> None:
    values = list_metrics(np.array([[0, 1, 2]]), random_data)
    assert set(values) == {"coverage@3", "novelty@3", "popular_share@3", "new_share@3"}
