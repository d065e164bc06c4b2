"""Whether a predicted probability of 30 % happens 30 % of the time: reliability and expected calibration error."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating[Any]]

BINS = 10


class Bin(NamedTuple):
    """Impressions of like predictions: their mean `predicted` probability, `observed` rate, and how many (`size`)."""

    predicted: float
    observed: float
    size: int


def reliability(labels: Values, probabilities: Values, bins: int = BINS) -> list[Bin]:
    """Return up to `bins` bins of about equally many impressions, least probable first.

    Equal predictions share a bin, so a model that says the same of everything has one. `labels` (n,) are 0 or 1.
    """
    if not len(labels):
        return []
    _, inverse = np.unique(probabilities, return_inverse=True)
    inverse = inverse.reshape(-1)
    counts = np.bincount(inverse)
    # The bin of a prediction is where the middle of its impressions falls.
    middle = (np.cumsum(counts) - counts / 2) / len(labels)
    place = np.minimum((middle * bins).astype(np.int64), bins - 1)[inverse]
    count = np.bincount(place, minlength=bins)
    predicted, observed = (np.bincount(place, values, minlength=bins) for values in (probabilities, labels))
    return [Bin(float(predicted[b] / count[b]), float(observed[b] / count[b]), int(count[b])) for b in range(bins)
            if count[b]]  # fmt: skip


def calibration_error(labels: Values, probabilities: Values, bins: int = BINS) -> float:
    """Return ECE: |predicted − observed|, averaged over the bins of `reliability` by their impressions.

    Its value depends on the bins, and a few impressions make it larger than it is: compare at equal n.
    """
    table = reliability(labels, probabilities, bins)
    if not table:
        return float("nan")
    return sum(b.size * abs(b.predicted - b.observed) for b in table) / len(labels)
