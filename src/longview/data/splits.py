"""Splits: which events train, and which single event of each evaluated user is the target."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from longview.data.meta import SplitSpec
from longview.errors import InputError

Rows = npt.NDArray[np.int64]
PIECE = 1 << 22
DIGIT = 16


@dataclass(frozen=True)
class EvaluationSet:
    """One target a user. `start`, `target` (n,) int64 are rows of the events table.

    A user's history is rows `start` to `target` (exclusive); it is never empty.
    """

    users: Rows
    start: Rows
    target: Rows

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Split:
    """Training rows offsets[u] to `train_end[u]` of every user, and the two evaluation sets."""

    spec: SplitSpec
    train_end: Rows
    validation: EvaluationSet
    test: EvaluationSet

    @classmethod
    def of(cls, spec: SplitSpec, offsets: Rows, timestamps: npt.NDArray[np.int64] | None) -> Split:
        """Divide events, sorted by user and time, as `spec` says.

        Raises:
            InputError: a time split of order-only data.
        """
        if spec.kind == "leave-last-out":
            return _leave_last_out(spec, offsets)
        if timestamps is None:
            raise InputError("split global-time needs a time column; this data has order only: use leave-last-out")
        return _global_time(resolve(spec, timestamps), offsets, timestamps)

    def describe(self) -> str:
        """Return the protocol in words."""
        if self.spec.kind == "leave-last-out":
            return (
                "leave-last-out: the last event of a user is the test target, the one before it the validation "
                "target, all earlier ones train"
            )
        return (
            f"global-time: training up to {_when(self.spec.validation_after)}, validation target is a user's last "
            f"event after it and up to {_when(self.spec.test_after)}, test target is a user's last event after that "
            f"(cuts at the {self.spec.quantile} quantile of time); the history is everything before the target"
        )


def resolve(spec: SplitSpec, timestamps: npt.NDArray[np.int64]) -> SplitSpec:
    """Return `spec` with both time cuts filled in (the lower value where a quantile falls between two)."""
    if spec.kind != "global-time" or spec.test_after is not None:
        return spec
    test_after = lower_quantile(timestamps, spec.quantile)
    validation_after = lower_quantile(timestamps, spec.quantile, up_to=test_after)
    return spec.model_copy(update={"test_after": test_after, "validation_after": validation_after})


def lower_quantile(values: npt.NDArray[np.int64], quantile: float, up_to: int | None = None) -> int:
    """Return the `quantile` of those `values` (n,) that are at most `up_to`; the lower one where it lies between two.

    Equal to `np.quantile(..., method="lower")`, but makes no copy of what may be a billion mapped values: it counts
    in pieces, `DIGIT` bits of the answer a pass.
    """
    pieces = [slice(start, start + PIECE) for start in range(0, len(values), PIECE)]
    low = min(int(values[piece].min()) for piece in pieces)
    span = max(int(values[piece].max()) for piece in pieces) - low if up_to is None else up_to - low
    shift = max(0, span.bit_length() - DIGIT)
    rank: int | None = None
    while True:
        counts = np.zeros((span >> shift) + 1, np.int64)
        for piece in pieces:
            offsets = values[piece] - low
            counts += np.bincount(offsets[(offsets >= 0) & (offsets <= span)] >> shift, minlength=len(counts))
        if rank is None:
            rank = int((counts.sum() - 1) * quantile)
        digit = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
        low += digit << shift
        if shift == 0:
            return low
        rank -= int(counts[:digit].sum())
        span, shift = min(span - (digit << shift), (1 << shift) - 1), max(0, shift - DIGIT)


def _leave_last_out(spec: SplitSpec, offsets: Rows) -> Split:
    start, end = offsets[:-1], offsets[1:]
    length = end - start
    train_end = np.where(length >= 3, end - 2, np.where(length == 2, end - 1, end))
    return Split(
        spec,
        train_end,
        _evaluation_set(start, end - 2, length >= 3),
        _evaluation_set(start, end - 1, length >= 2),
    )


def _global_time(spec: SplitSpec, offsets: Rows, timestamps: npt.NDArray[np.int64]) -> Split:
    start, end = offsets[:-1], offsets[1:]
    train_end = start + count_until(timestamps, offsets, spec.validation_after)
    test_start = start + count_until(timestamps, offsets, spec.test_after)
    return Split(
        spec,
        train_end,
        _evaluation_set(start, test_start - 1, test_start > np.maximum(train_end, start + 1)),
        _evaluation_set(start, end - 1, end > np.maximum(test_start, start + 1)),
    )


def count_until(timestamps: npt.NDArray[np.int64], offsets: Rows, limit: int | None) -> Rows:
    """Return how many events of each user are at or before `limit` seconds, (num_users,) int64."""
    assert limit is not None, "resolve() fills the time cuts in"
    low, high = offsets[:-1].copy(), offsets[1:].copy()  # bisection of all users at once: times are sorted
    while (low < high).any():
        middle = (low + high) // 2
        early = (low < high) & (timestamps[np.minimum(middle, len(timestamps) - 1)] <= limit)
        low, high = np.where(early, middle + 1, low), np.where(early | (low >= high), high, middle)
    return np.asarray(low - offsets[:-1])


def _when(seconds: int | None) -> str:
    assert seconds is not None, "resolve() fills the time cuts in"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _evaluation_set(start: Rows, target: Rows, chosen: npt.NDArray[Any]) -> EvaluationSet:
    users = np.flatnonzero(chosen)
    return EvaluationSet(users, start[users], target[users])
