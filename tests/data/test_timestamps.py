"""Times of any type and unit become exact keys; what is no time is named by row."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longview.data.timestamps import OrderKeys, Place, TimeKeys
from longview.errors import InputError

NOW = 1_700_000_000  # seconds
AT = 1_594_000_000  # 2020-07-06 01:46:40 UTC
PLACE = Place(Path("log.csv"), "when", 1)


def keys(values: list[Any] | pl.Series) -> list[int]:
    return TimeKeys(NOW)(values if isinstance(values, pl.Series) else pl.Series(values), PLACE).tolist()


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_whole_numbers_of_any_unit_are_told_apart_by_magnitude(unit: int) -> None:
    assert keys([AT * unit, (AT + 1) * unit]) == [AT * 10**9, (AT + 1) * 10**9]
    assert keys([str(AT * unit)]) == [AT * 10**9]


def test_fractions_are_kept_to_the_microsecond() -> None:
    assert keys([AT + 0.25, AT + 0.000001]) == [AT * 10**9 + 250_000_000, AT * 10**9 + 1000]
    assert keys([f"{AT}.5"]) == [AT * 10**9 + 500_000_000]
    assert keys([AT * 1000.0 + 0.5]) == [AT * 10**9 + 500_000]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2020-07-06T01:46:40", AT),
        ("2020-07-06 01:46:40.000", AT),
        ("2020-07-06T01:46:40Z", AT),
        ("2020-07-06 01:46:40 UTC", AT),
        ("2020-07-06T03:46:40+02:00", AT),
        ("2020-07-05T20:16:40-0530", AT),
        ("2020-07-06T03:46:40+02", AT),
        ("2020/07/06 01:46", AT - 40),
        ("2020-07-06", AT - 6400),
        ("20200706", AT - 6400),
    ],
)
def test_iso_text(text: str, seconds: int) -> None:
    assert keys([text]) == [seconds * 10**9]


def test_spaces_around_times_do_not_matter() -> None:
    assert keys([f" {AT}", f"{AT} "]) == [AT * 10**9] * 2
    assert keys([" 2020-07-06 01:46:40 "]) == [AT * 10**9]


def test_iso_text_of_several_shapes_and_nanoseconds_in_one_column() -> None:
    assert keys(["2020-07-06", "2020-07-06T01:46:40.123456789Z", "2020-07-06 01:46"]) == [
        (AT - 6400) * 10**9,
        AT * 10**9 + 123_456_789,
        (AT - 40) * 10**9,
    ]


def test_date_and_datetime_columns() -> None:
    assert keys([date(2020, 7, 6)]) == [(AT - 6400) * 10**9]
    assert keys([datetime(2020, 7, 6, 1, 46, 40)]) == [AT * 10**9]
    assert keys([datetime(2020, 7, 6, 1, 46, 40, tzinfo=UTC)]) == [AT * 10**9]
    berlin = pl.Series(["2020-07-06 03:46:40"]).str.to_datetime().dt.replace_time_zone("Europe/Berlin")
    assert keys(berlin) == [AT * 10**9]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([AT, -1], "row 2: column 'when' holds a time before 1970 \\(-1\\)"),
        ([AT, NOW + 2 * 86_400], "row 2.*in the future"),
        ([float(AT), float("nan")], "row 2.*nan"),
        ([float(AT), float("inf")], "row 2.*inf"),
        ([AT, AT * 1000], f"row 2.*mixes units: {AT * 1000} looks like milliseconds.*row 1 of log.csv.*like seconds"),
        ([str(AT), "soon"], "row 2.*'soon'.*a number"),
        (["2020-07-06", "soon"], "row 2.*'soon'.*ISO 8601"),
        (["2020-07-06", "1854-01-01"], "row 2.*before 1970"),
        (["2020-07-06", "2854-01-01"], "row 2.*in the future"),
        ([date(1854, 1, 1)], "row 1.*before 1970"),
        ([True], "Boolean"),
    ],
)
def test_what_is_no_time_is_named(values: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        keys(values)


def test_units_that_change_between_batches_are_named_with_both_places() -> None:
    times = TimeKeys(NOW)
    times(pl.Series([AT]), PLACE)
    with pytest.raises(InputError, match=r"b.csv: row 8: .*looks like milliseconds, but row 1 of log.csv"):
        times(pl.Series([AT * 1000]), Place(Path("b.csv"), "when", 8))


def test_numbers_and_dates_do_not_mix_between_batches() -> None:
    times = TimeKeys(NOW)
    times(pl.Series([str(AT)]), PLACE)
    with pytest.raises(InputError, match=r"row 9.*'2020-07-06'.*a number"):
        times(pl.Series(["2020-07-06"]), Place(Path("log.csv"), "when", 9))


def test_rows_left_out_before_do_not_shift_the_numbers() -> None:
    with pytest.raises(InputError, match="row 107:"):
        TimeKeys(NOW)(pl.Series([AT, -1]), Place(Path("log.csv"), "when", 100, np.array([3, 7])))


numbers = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30)


@given(numbers)
def test_order_keys_sort_like_their_numbers(values: list[float]) -> None:
    found = OrderKeys()(pl.Series(values, dtype=pl.Float64), PLACE)
    for (a, x), (b, y) in zip(zip(values, found, strict=True), list(zip(values, found, strict=True))[1:], strict=False):
        assert (a < b) == (x < y)
        assert (a == b) == (x == y)


def test_orders_are_numbers() -> None:
    assert OrderKeys()(pl.Series([3, -1]), PLACE).tolist() == [3, -1]
    first, second = OrderKeys()(pl.Series(["10", "9.5"]), PLACE).tolist()
    assert first > second
    with pytest.raises(InputError, match=r"row 2.*'x', which is not a number"):
        OrderKeys()(pl.Series(["1", "x"]), PLACE)
    with pytest.raises(InputError, match=r"row 1.*orders nothing"):
        OrderKeys()(pl.Series([float("inf")]), PLACE)
    with pytest.raises(InputError, match="an order is a number"):
        OrderKeys()(pl.Series([[1]]), PLACE)
