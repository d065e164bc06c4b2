"""Reliability bins and the calibration error made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longview.evaluation.metrics import calibration_error, reliability


@given(
    rows=st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=16)), min_size=1, max_size=60),
    bins=st.integers(1, 8),
)
def test_bins_hold_every_impression_once_in_order(rows: list[tuple[float, float]], bins: int) -> None:
    labels, predictions = (np.array(column) for column in zip(*rows, strict=True))
    table = reliability(labels, predictions, bins)
    assert 1 <= len(table) <= bins
    assert sum(b.size for b in table) == len(labels)
    assert sum(b.size * b.observed for b in table) == pytest.approx(labels.sum())
    assert sum(b.size * b.predicted for b in table) == pytest.approx(predictions.sum())
    middles = [b.predicted for b in table]
    assert middles == sorted(middles)


def test_distinct_predictions_fill_bins_evenly() -> None:
    assert [b.size for b in reliability(np.zeros(50), np.arange(50) / 50, 5)] == [10] * 5


def test_equal_predictions_share_a_bin() -> None:
    table = reliability(np.array([0.0, 1, 1, 1]), np.full(4, 0.5))
    assert table == [(0.5, 0.75, 4)]
    assert calibration_error(np.array([0.0, 1, 1, 1]), np.full(4, 0.5)) == pytest.approx(0.25)


def test_what_happens_as_often_as_said_has_no_error() -> None:
    predictions = np.repeat([0.25, 0.75], 4)
    assert calibration_error(np.array([1.0, 0, 0, 0, 1, 1, 1, 0]), predictions, 2) == pytest.approx(0)


def test_errors_of_opposite_sign_do_not_cancel_between_bins() -> None:
    predictions = np.repeat([0.2, 0.8], 2)
    assert calibration_error(np.array([0.0, 1, 0, 1]), predictions, 2) == pytest.approx(0.3)


def test_nothing_to_measure() -> None:
    assert reliability(np.array([]), np.array([])) == []
    assert math.isnan(calibration_error(np.array([]), np.array([])))
