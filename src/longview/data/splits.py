"""Splits: which events train, and which single event of each evaluated user is the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longview.data.meta import SplitSpec
from longview.errors import InputError

Rows = npt.NDArray[np.int64]


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
            f"global-time: training up to the time cut {self.spec.validation_after}, validation target is a user's "
            f"last event after it and up to {self.spec.test_after}, test target is a user's last event after that "
            f"(cuts at the {self.spec.quantile} quantile of time); the history is everything before the target"
        )


def resolve(spec: SplitSpec, timestamps: npt.NDArray[np.int64]) -> SplitSpec:
    """Return `spec` with both time cuts filled in (the lower value where a quantile falls between two)."""
    if spec.kind != "global-time" or spec.test_after is not None:
        return spec
    test_after = int(np.quantile(timestamps, spec.quantile, method="lower"))
    earlier = timestamps[timestamps <= test_after]
    validation_after = int(np.quantile(earlier, spec.quantile, method="lower"))
    return spec.model_copy(update={"test_after": test_after, "validation_after": validation_after})


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
    train_end = start + _count_until(timestamps, offsets, spec.validation_after)
    test_start = start + _count_until(timestamps, offsets, spec.test_after)
    return Split(
        spec,
        train_end,
        _evaluation_set(start, test_start - 1, test_start > np.maximum(train_end, start + 1)),
        _evaluation_set(start, end - 1, end > np.maximum(test_start, start + 1)),
    )


def _count_until(timestamps: npt.NDArray[np.int64], offsets: Rows, limit: int | None) -> Rows:
    assert limit is not None, "resolve() fills the time cuts in"
    before = np.concatenate([[0], np.cumsum(timestamps <= limit)])
    return np.asarray(before[offsets[1:]] - before[offsets[:-1]])


def _evaluation_set(start: Rows, target: Rows, chosen: npt.NDArray[Any]) -> EvaluationSet:
    users = np.flatnonzero(chosen)
    return EvaluationSet(users, start[users], target[users])
