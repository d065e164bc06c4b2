"""Metrics of a query whose gallery holds any number of relevant images: Recall@K, CMC, MRR, R-precision, MAP@R.

`first_rank` (q,) is the rank of the first relevant image, 1 is best and infinite where there is none;
`relevant` (q, depth) bool says of each place of the ranked gallery, best first, whether it is relevant, and
`num_relevant` (q,) is R, how many the gallery holds. Every function returns one value a query; a query with R = 0
gets 0. Sources: Musgrave, Belongie, Lim, A Metric Learning Reality Check, arXiv 2003.08505 (R-precision, MAP@R).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from longview.errors import InputError
from longview.evaluation.metrics.accuracy import hit, reciprocal_rank

Values = npt.NDArray[np.floating[Any]]
Counts = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]

__all__ = ["average_precision_at_r", "cumulative_match", "hit", "r_precision", "reciprocal_rank"]


def cumulative_match(first_rank: Values, depth: int) -> Values:
    """Return the CMC curve (depth,): at K − 1, the share of queries with a relevant image in the first K.

    Its value at K is Recall@K (`hit`), which metric learning calls recall although one relevant image suffices.

    Example:
        >>> cumulative_match(np.array([1.0, 3.0, np.inf, 1.0]), 3).tolist()
        [0.5, 0.5, 0.75]
    """
    found = first_rank[first_rank <= depth].astype(np.int64)
    curve: Values = np.bincount(found, minlength=depth + 1)[1:].cumsum() / max(1, len(first_rank))
    return curve


def r_precision(relevant: Flags, num_relevant: Counts) -> Values:
    """R-precision: the share of the first R places that are relevant.

    Raises:
        InputError: `relevant` is narrower than the largest R.
    """
    within = _first_r(relevant, num_relevant)
    values: Values = within.sum(1) / np.maximum(num_relevant, 1)
    return values


def average_precision_at_r(relevant: Flags, num_relevant: Counts) -> Values:
    """MAP@R: the mean over the first R places of (precision so far if the place is relevant, else 0).

    1 only where all relevant images come first; a relevant image below place R counts nothing.

    Example:
        >>> relevant = np.array([[True, False, True, False]])
        >>> round(float(average_precision_at_r(relevant, np.array([3]))[0]), 6)  # (1/1 + 2/3) / 3
        0.555556

    Raises:
        InputError: `relevant` is narrower than the largest R.
    """
    within = _first_r(relevant, num_relevant)
    precision = within.cumsum(1) / np.arange(1, relevant.shape[1] + 1)
    values: Values = (precision * within).sum(1) / np.maximum(num_relevant, 1)
    return values


def _first_r(relevant: Flags, num_relevant: Counts) -> Flags:
    deepest = int(num_relevant.max(initial=0))
    if relevant.shape[1] < deepest:
        raise InputError(
            f"R-precision and MAP@R look at the first R places: one query has R = {deepest}, "
            f"but only {relevant.shape[1]} places are given; rank the gallery deeper"
        )
    return relevant & (np.arange(relevant.shape[1]) < num_relevant[:, None])
