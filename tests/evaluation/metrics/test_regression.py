"""Errors of predicted amounts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from longview.evaluation.metrics import absolute_error, root_squared_error


def test_errors_by_hand() -> None:
    values, predictions = np.array([1.0, 5.0]), np.array([2.0, 2.0])
    assert absolute_error(values, predictions) == pytest.approx(2)
    assert root_squared_error(values, predictions) == pytest.approx(math.sqrt(5))


def test_nothing_to_measure() -> None:
    assert math.isnan(absolute_error(np.array([]), np.array([])))
    assert math.isnan(root_squared_error(np.array([]), np.array([])))
