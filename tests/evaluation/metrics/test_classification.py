"""Log loss, NE, AUC and GAUC against closed forms and loops that spell out their definitions."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longview.evaluation.metrics import auc, gauc, log_loss, normalised_entropy, user_auc
from longview.evaluation.metrics.classification import Ordering

impressions = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.1, 0.25, 0.5, 0.8]), st.integers(0, 3)),
    min_size=1,
    max_size=25,
)


def columns(rows: list[tuple[float, float, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, scores, users = zip(*rows, strict=True)
    return np.array(labels), np.array(scores), np.array(users)


def pairwise_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Every positive against every negative."""
    wins = [
        float(p > n) + 0.5 * float(p == n)
        for p, n in product(scores[labels == 1].tolist(), scores[labels == 0].tolist())
    ]
    return sum(wins) / len(wins) if wins else math.nan


@given(rows=impressions)
def test_auc_counts_pairs_and_ties_half(rows: list[tuple[float, float, int]]) -> None:
    labels, scores, _ = columns(rows)
    assert auc(labels, scores) == pytest.approx(pairwise_auc(labels, scores), nan_ok=True)


@given(rows=impressions)
def test_gauc_is_the_weighted_mean_over_users_with_both_classes(rows: list[tuple[float, float, int]]) -> None:
    labels, scores, users = columns(rows)
    each = {u: (pairwise_auc(labels[users == u], scores[users == u]), (users == u).sum()) for u in set(users.tolist())}
    known = {u: pair for u, pair in each.items() if not math.isnan(pair[0])}
    found = user_auc(labels, scores, users)
    assert found.users.tolist() == sorted(known)
    assert found.num_excluded == len(each) - len(known)
    assert found.excluded_impressions == len(labels) - sum(count for _, count in known.values())
    total = sum(count for _, count in known.values())
    expected = sum(value * count for value, count in known.values()) / total if total else math.nan
    assert gauc(labels, scores, users) == pytest.approx(expected, nan_ok=True)


@given(rows=impressions, counts=st.lists(st.integers(0, 3), min_size=25, max_size=25))
def test_weights_count_impressions_several_times(rows: list[tuple[float, float, int]], counts: list[int]) -> None:
    labels, scores, _ = columns(rows)
    weights = np.array(counts[: len(labels)])
    repeated = np.repeat(labels, weights), np.repeat(scores, weights)
    weighted = Ordering.of(scores).auc(labels, weights.astype(float))
    assert weighted == pytest.approx(pairwise_auc(*repeated), nan_ok=True)
    if weights.sum():
        assert log_loss(labels, scores, weights) == pytest.approx(log_loss(*repeated))


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5])
def test_the_best_constant_has_an_entropy_of_one_and_any_other_more(rate: float) -> None:
    labels = (np.arange(1000) < 1000 * rate).astype(float)
    assert normalised_entropy(labels, np.full(1000, rate)) == pytest.approx(1)
    assert normalised_entropy(labels, np.full(1000, rate * 1.1)) > 1
    assert log_loss(labels, np.full(1000, rate)) == pytest.approx(
        -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    )


def test_perfect_and_reversed_scores() -> None:
    labels = np.array([0.0, 0, 1, 1])
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    assert (auc(labels, scores), auc(labels, -scores), auc(labels, np.zeros(4))) == (1.0, 0.0, 0.5)


def test_one_class_only_has_a_log_loss_and_nothing_else() -> None:
    ones, scores = np.ones(3), np.array([0.9, 0.5, 0.2])
    assert math.isnan(auc(ones, scores))
    assert math.isnan(normalised_entropy(ones, scores))
    assert math.isnan(gauc(ones, scores, np.zeros(3, int)))
    assert log_loss(ones, scores) == pytest.approx(-np.log(scores).mean())


def test_certainty_in_the_wrong_costs_a_finite_loss() -> None:
    assert log_loss(np.array([1.0]), np.array([0.0])) == pytest.approx(-math.log(1e-15))


def test_nothing_to_measure_is_not_a_number() -> None:
    none = np.array([])
    assert all(math.isnan(f(none, none)) for f in (auc, log_loss, normalised_entropy))
    assert user_auc(none, none, none.astype(int)).num_excluded == 0
