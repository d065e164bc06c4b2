"""Metrics of predicted amounts, such as a rating or seconds watched; lower is better."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating[Any]]


def absolute_error(values: Values, predictions: Values) -> float:
    """Return MAE: the mean of |prediction − value|, in the unit of the values."""
    return float(np.abs(predictions - values).mean()) if len(values) else float("nan")


def root_squared_error(values: Values, predictions: Values) -> float:
    """Return RMSE: the root of the mean squared error, in the unit of the values."""
    return float(np.sqrt(np.square(predictions - values).mean())) if len(values) else float("nan")
