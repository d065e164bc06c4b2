"""Times and orders of any type, as int64 keys that sort exactly.

Times become nanoseconds since 1970 UTC: numbers in seconds, milliseconds, microseconds or nanoseconds (told apart
by magnitude), days such as 20200706, ISO 8601 text, date and datetime columns (a time without a zone is UTC).
Numbers with a fraction are kept to the microsecond, which is what a float64 of today holds. Prepared data stores
whole seconds, but is sorted by these keys.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from longview.errors import InputError

if TYPE_CHECKING:
    import polars as pl

Keys = npt.NDArray[np.int64]
SECOND = 1_000_000_000
DAY = 86_400 * SECOND

# A number of at least `from` is in this unit: 1e11 seconds are the year 5138, 1e11 milliseconds are 1973.
UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
BOUNDS = np.array([1e11, 1e14, 1e17])
NANOSECONDS = (10**9, 10**6, 10**3, 1)
FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
ZONE = r"^(?<clock>.*\d:\d\d(?:\.\d+)?) ?(?:Z|UTC|GMT|(?<sign>[+-])(?<hours>\d\d):?(?<minutes>\d\d)?)$"


@dataclass(frozen=True)
class Place:
    """Where a batch of a column comes from, for messages: row 1 is the first row of data in the file."""

    path: Path
    column: str
    first_row: int
    rows: npt.NDArray[np.int64] | None = None  # which rows of the batch were kept, if some were dropped

    def error(self, index: int, problem: str) -> InputError:
        """Return the error `problem` of the row at `index` of this batch."""
        return InputError(f"{self.path}: {self.row(index)}: column {self.column!r} {problem}")

    def row(self, index: int) -> str:
        """Name the row at `index` of this batch."""
        return f"row {self.first_row + int(index if self.rows is None else self.rows[index]):,}"

    def check(self, bad: npt.NDArray[np.bool_], problem: str, values: pl.Series | None = None) -> None:
        """Raise `problem` for the first row that is `bad`; `{}` in it stands for the value there."""
        if bad.any():
            index = int(np.argmax(bad))
            raise self.error(index, problem if values is None else problem.format(values[index]))


class TimeKeys:
    """Turns the batches of a time column into nanosecond keys; remembers the unit, so that mixed ones are found."""

    def __init__(self, now: float | None = None) -> None:
        self._latest = int((time.time() if now is None else now) * SECOND) + DAY
        self._unit: tuple[int, str] | None = None
        self._text: str | None = None

    def __call__(self, values: pl.Series, place: Place) -> Keys:
        """Return the keys (rows,) of `values`, which have no nulls.

        Raises:
            InputError: a value that is no time, a negative or future one, or two units in one column.
        """
        import polars as pl

        if values.dtype == pl.String:
            values = self._parse(values, place)
        days = _calendar_days(values) if values.dtype.is_integer() else None
        values = values if days is None else days
        if values.dtype in (pl.Date, pl.Datetime):
            micros = values.cast(pl.Datetime("us")).to_physical().to_numpy()
            self._check_range(micros < 0, micros > self._latest // 1000, values, place)
            return np.asarray(values.cast(pl.Datetime("ns")).to_physical().to_numpy(), np.int64)
        if not values.dtype.is_numeric():
            raise InputError(
                f"{place.path}: column {place.column!r} is of type {values.dtype}, which is no time: give numbers, "
                "ISO 8601 text, dates or datetimes, or --order for a column that only orders events"
            )
        return self._numbers(values, place)

    def _parse(self, text: pl.Series, place: Place) -> pl.Series:
        import polars as pl

        numbers = text.cast(pl.Int64, strict=False)
        if numbers.has_nulls():
            text = text.str.strip_chars()
            numbers = text.cast(pl.Float64, strict=False)
        if self._text is None:
            self._text = "numbers" if numbers[0] is not None else "dates"
        parsed = numbers if self._text == "numbers" else iso_datetimes(text)
        wanted = {
            "numbers": "a number, as in the rows before it",
            "dates": "an ISO 8601 date or time such as 2020-07-06 01:46:40",
        }[self._text]
        place.check(
            parsed.is_null().to_numpy(),
            f"holds {{!r}}, which is not {wanted}; correct it, or use --order for a column that only orders events",
            text,
        )
        return parsed

    def _numbers(self, values: pl.Series, place: Place) -> Keys:
        numbers = values.to_numpy()
        whole = np.issubdtype(numbers.dtype, np.integer)
        if not whole:
            place.check(~np.isfinite(numbers), "holds {}, which is not a time; remove or correct the row", values)
        magnitude = np.digitize((numbers.min(), numbers.max()), BOUNDS)
        if magnitude[0] != magnitude[1] or (self._unit is not None and self._unit[0] != magnitude[0]):
            self._mixed(numbers, place)
        unit = int(magnitude[0])
        if self._unit is None:
            self._unit = unit, f"{place.row(0)} of {place.path} ({numbers[0]})"
        scale = NANOSECONDS[unit]
        latest = self._latest // scale
        self._check_range(numbers < 0, numbers > latest, values, place)
        if whole:
            return np.asarray(numbers.astype(np.int64) * scale)
        if scale == 1:
            return np.asarray(numbers.astype(np.int64))
        return np.asarray(np.rint(numbers * (scale // 1000)).astype(np.int64) * 1000)

    def _mixed(self, numbers: npt.NDArray[Any], place: Place) -> None:
        place.check(np.asarray(numbers < 0), "holds a negative time; remove or correct the row")
        units = np.digitize(numbers, BOUNDS)
        if self._unit is None:
            self._unit = int(units[0]), f"{place.row(0)} of {place.path} ({numbers[0]})"
        other = int(np.argmax(units != self._unit[0]))
        raise place.error(
            other,
            f"mixes units: {numbers[other]} looks like {UNITS[units[other]]}, but {self._unit[1]} like "
            f"{UNITS[self._unit[0]]}; bring the column to one unit",
        )

    def _check_range(
        self, negative: npt.NDArray[np.bool_], future: npt.NDArray[np.bool_], values: pl.Series, place: Place
    ) -> None:
        place.check(negative, "holds a time before 1970 ({}); remove or correct the row", values)
        place.check(
            future,
            "holds a time in the future ({}); correct it, or use --order if the column only orders events",
            values,
        )


class OrderKeys:
    """Turns the batches of an order column (positions, ranks) into keys that sort alike."""

    def __call__(self, values: pl.Series, place: Place) -> Keys:
        """Return the keys (rows,) of `values`, which have no nulls.

        Raises:
            InputError: a value that is not a number.
        """
        import polars as pl

        if values.dtype == pl.String:
            text = values
            values = text.str.strip_chars().cast(pl.Float64, strict=False)
            place.check(values.is_null().to_numpy(), "holds {!r}, which is not a number", text)
        if values.dtype in (pl.Date, pl.Datetime):
            values = values.cast(pl.Datetime("ns")).to_physical()
        if not values.dtype.is_numeric():
            raise InputError(f"{place.path}: column {place.column!r} is of type {values.dtype}; an order is a number")
        if values.dtype.is_float():
            numbers = values.to_numpy().astype(np.float64) + 0.0  # -0.0 becomes 0.0
            place.check(~np.isfinite(numbers), "holds {}, which orders nothing", values)
            bits = numbers.view(np.int64)
            return np.asarray(bits ^ ((bits >> 63) & np.int64(0x7FFF_FFFF_FFFF_FFFF)))
        return values.to_numpy().astype(np.int64)


def iso_datetimes(text: pl.Series) -> pl.Series:
    """Return ISO 8601 `text` as UTC datetimes, null where it is none.

    Example:
        >>> import polars as pl
        >>> iso_datetimes(pl.Series(["2020-07-06T03:46:40.5+02:00"])).dt.timestamp("ms").to_list()
        [1594000000500]
    """
    import polars as pl

    plain = text.str.strip_chars().str.replace(r"(\d)T(\d)", "$1 $2").str.replace_all("/", "-", literal=True)
    frame = pl.DataFrame({"clock": plain, "minutes": pl.Series([0], dtype=pl.Int64).new_from_index(0, len(plain))})
    if plain.str.contains(ZONE).any():
        groups = plain.str.extract_groups(ZONE).struct
        ahead = groups.field("hours").cast(pl.Int64) * 60 + groups.field("minutes").cast(pl.Int64).fill_null(0)
        behind = (groups.field("sign") == "-").fill_null(False)
        frame = frame.select(
            pl.coalesce(groups.field("clock"), "clock").alias("clock"),
            pl.when(behind).then(-ahead).otherwise(ahead).fill_null(0).alias("minutes"),
        )
    # Nanoseconds reach from 1678 to 2262 only; what lies outside is refused later, so it must not wrap round here.
    unit: Literal["ns", "us"] = "ns" if str(plain.min()) > "1700" and str(plain.max()) < "2200" else "us"
    parsed = pl.Series([None], dtype=pl.Datetime(unit)).new_from_index(0, len(plain))
    for pattern in FORMATS:
        found = frame["clock"].str.to_datetime(pattern, time_unit=unit, strict=False)
        parsed = parsed.zip_with(parsed.is_not_null(), found)
        if not parsed.has_nulls():
            break
    return frame.select((parsed - pl.duration(minutes="minutes", time_unit=unit)).alias("time")).to_series()


def _calendar_days(numbers: pl.Series) -> pl.Series | None:
    """Return whole numbers such as 20200706 as dates, or None where any of them is no such day."""
    import polars as pl

    low, high = numbers.min(), numbers.max()
    if not isinstance(low, int) or not isinstance(high, int) or low < 19_700_101 or high > 21_001_231:
        return None
    days = numbers.cast(pl.String).str.to_date("%Y%m%d", strict=False)
    return None if days.has_nulls() else days
