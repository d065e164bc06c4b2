"""Bootstrap intervals over users."""

from __future__ import annotations

from functools import partial

import numpy as np

from longview.evaluation.intervals import bootstrap
from longview.evaluation.metrics import accuracy, hit

HITS = lambda rank: {"hr@10": hit(rank, 10)}


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        rank = np.where(generator.random(400) < 0.3, 5.0, 50.0)
        low, high = bootstrap(rank, HITS, resamples=400, seed=trial)["hr@10"]
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_width_is_that_of_a_binomial() -> None:
    rank = np.where(np.arange(6040) < 0.32 * 6040, 1.0, 99.0)
    low, high = bootstrap(rank, HITS)["hr@10"]
    error = (0.32 * 0.68 / 6040) ** 0.5
    assert abs((high - low) / (2 * 1.96 * error) - 1) < 0.1


def test_drawing_distinct_ranks_is_drawing_users() -> None:
    """The same spread as resampling the users themselves, one by one."""
    generator = np.random.default_rng(1)
    rank = generator.integers(1, 60, 500).astype(float)
    plain = [rank[generator.integers(0, 500, 500)] for _ in range(2000)]
    for name, (low, high) in bootstrap(rank, partial(accuracy, ks=(10,)), resamples=2000).items():
        means = [accuracy(drawn, (10,))[name].mean() for drawn in plain]
        expected = np.quantile(means, [0.025, 0.975])
        np.testing.assert_allclose([low, high], expected, atol=0.15 * np.ptp(expected))


def test_equal_seeds_give_equal_intervals() -> None:
    rank = np.random.default_rng(2).integers(1, 100, 200).astype(float)
    metrics = partial(accuracy, ks=(10,))
    assert bootstrap(rank, metrics, seed=3) == bootstrap(rank, metrics, seed=3)
    assert bootstrap(rank, metrics, seed=3) != bootstrap(rank, metrics, seed=4)


def test_users_that_are_all_alike_leave_no_doubt() -> None:
    assert bootstrap(np.full(10, 1.0), HITS)["hr@10"] == (1.0, 1.0)
    assert bootstrap(np.full(10, np.inf), HITS)["hr@10"] == (0.0, 0.0)
