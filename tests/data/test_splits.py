"""Splits: exactly what the evaluation protocol says, and nothing of the future in training."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longview.data import Split
from longview.data.meta import SplitSpec
from longview.data.splits import lower_quantile, resolve
from longview.errors import InputError

LEAVE_LAST_OUT = SplitSpec(kind="leave-last-out")


def offsets_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def test_leave_last_out_tests_the_last_event_and_validates_on_the_one_before() -> None:
    split = Split.of(LEAVE_LAST_OUT, offsets_of([5, 3]), None)
    assert split.train_end.tolist() == [3, 6]
    assert split.validation.target.tolist() == [3, 6]
    assert split.test.target.tolist() == [4, 7]
    assert split.validation.start.tolist() == split.test.start.tolist() == [0, 5]


def test_short_users_keep_what_can_be_kept() -> None:
    split = Split.of(LEAVE_LAST_OUT, offsets_of([1, 2, 3]), None)
    assert split.train_end.tolist() == [1, 2, 4]  # one event: it trains; two: one trains, one is the test target
    assert split.test.users.tolist() == [1, 2]
    assert split.validation.users.tolist() == [2]


def test_global_time_cuts_at_the_quantile_and_predicts_the_last_event_after_it() -> None:
    times = np.array([1, 2, 3, 9, 10, 4, 5, 6, 7, 8], np.int64)
    split = Split.of(SplitSpec(kind="global-time", quantile=0.8), offsets_of([5, 5]), times)
    assert (split.spec.test_after, split.spec.validation_after) == (8, 6)
    assert split.train_end.tolist() == [3, 8]
    assert split.test.users.tolist() == [0]
    assert split.test.target.tolist() == [4]  # not the first event after the cut: the last
    assert split.validation.users.tolist() == [1]
    assert split.validation.target.tolist() == [9]


def test_a_user_who_begins_after_the_cut_is_tested_on_a_history_of_one_event() -> None:
    times = np.array([1, 2, 3, 4, 10, 11, 12], np.int64)
    split = Split.of(SplitSpec(kind="global-time", quantile=0.5), offsets_of([4, 2, 1]), times)
    assert split.test.users.tolist() == [1]  # the third user has no history at all
    assert (split.test.start.tolist(), split.test.target.tolist()) == ([4], [5])


def test_order_only_data_has_no_time_split() -> None:
    with pytest.raises(InputError, match="leave-last-out"):
        Split.of(SplitSpec(kind="global-time"), offsets_of([3]), None)


def test_the_protocol_is_told_in_words() -> None:
    times = np.arange(1_600_000_000, 1_600_000_010)
    split = Split.of(SplitSpec(kind="global-time"), offsets_of([10]), times)
    assert "2020-09-13 12:26:48" in split.describe()
    assert "last event" in Split.of(LEAVE_LAST_OUT, offsets_of([3]), None).describe()


logs = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=8), min_size=1, max_size=8)


@given(logs, st.floats(0.05, 0.95))
def test_global_time_shows_training_nothing_after_the_cut(users: list[list[int]], quantile: float) -> None:
    times = np.array([t for user in users for t in sorted(user)], np.int64)
    offsets = offsets_of([len(user) for user in users])
    split = Split.of(SplitSpec(kind="global-time", quantile=quantile), offsets, times)
    spec = split.spec
    assert spec.test_after is not None
    assert spec.validation_after is not None
    assert spec.test_after == np.quantile(times, quantile, method="lower")
    for user, (start, end) in enumerate(pairwise(offsets)):
        trained = times[start : split.train_end[user]]
        assert (trained <= spec.validation_after).all()
        assert (times[split.train_end[user] : end] > spec.validation_after).all()
    for chosen, low, high in (
        (split.validation, spec.validation_after, spec.test_after),
        (split.test, spec.test_after, times.max()),
    ):
        assert (chosen.target > chosen.start).all()
        assert (times[chosen.target] > low).all()
        assert (times[chosen.target] <= high).all()
        last = np.array([np.flatnonzero(times[: offsets[u + 1]] <= high)[-1] for u in chosen.users], np.int64)
        assert chosen.target.tolist() == last.tolist()


@settings(max_examples=50)
@given(
    st.lists(st.integers(-(2**61), 2**61), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
)
def test_the_lower_quantile_is_that_of_numpy(values: list[int], quantile: float) -> None:
    array = np.array(values, np.int64)
    cut = lower_quantile(array, quantile)
    assert cut == np.sort(array)[int((len(array) - 1) * quantile)]
    earlier = np.sort(array[array <= cut])
    assert lower_quantile(array, quantile, up_to=cut) == earlier[int((len(earlier) - 1) * quantile)]


def test_the_lower_quantile_reads_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longview.data.splits.PIECE", 7)
    values = np.random.default_rng(0).integers(0, 2**40, 100)
    assert lower_quantile(values, 0.9) == np.quantile(values, 0.9, method="lower")


def test_resolved_cuts_are_kept() -> None:
    spec = SplitSpec(kind="global-time", test_after=5, validation_after=3)
    assert resolve(spec, np.arange(100)) is spec
