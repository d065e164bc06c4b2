"""The one pass over a log: rows become codes, keys, labels and strengths in a spool on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longview.data.columns import Columns
from longview.data.ids import Dictionary, as_text
from longview.data.readers import Source
from longview.data.spool import Spool
from longview.data.textfile import NotUtf8Error, TextFile
from longview.data.timestamps import OrderKeys, Place, TimeKeys
from longview.errors import InputError

if TYPE_CHECKING:
    import polars as pl

Report = Callable[[str, int, int], None]  # (what is being done, how much is done, of how much)


@dataclass
class Encoded:
    """A log as codes. `spool` has `user`, `item` uint32 codes and `key` int64 in order of appearance, and
    `label<n>` uint32 codes and `strength<n>` float32 for each action and strength column."""

    spool: Spool
    users: Dictionary
    items: Dictionary
    labels: list[Dictionary]
    rows_read: int = 0
    incomplete: int = 0
    notes: list[str] = field(default_factory=list)


def encode(
    sources: Sequence[Source], columns: Columns, folder: Path, *, drop_incomplete: bool, report: Report
) -> Encoded:
    """Read `sources` into a new spool in `folder`.

    Raises:
        InputError: a row or value that cannot be used, named by file, row and column; no rows at all.
    """
    sources = list(sources)
    notes = []
    for attempt in range(len(sources) + 1):
        try:
            encoded = _encode(sources, columns, folder / f"read{attempt}", drop_incomplete, report)
        except NotUtf8Error as problem:  # after the sample: read all of it again, that file as Latin-1
            sources = [s.as_latin1() if isinstance(s, TextFile) and s.path == problem.path else s for s in sources]
            continue
        break
    for source in sources:
        if isinstance(source, TextFile) and source.encoding == "latin-1":
            notes.append(f"{source.path} is not UTF-8: read as Latin-1")
    if not encoded.rows_read:
        raise InputError(f"{sources[0].path}: there is a header but no rows")
    if not encoded.spool.rows:
        raise InputError(f"{sources[0].path}: every row lacks a user, an item or a time; check the columns")
    encoded.notes += notes
    return encoded


def _encode(
    sources: Sequence[Source], columns: Columns, folder: Path, drop_incomplete: bool, report: Report
) -> Encoded:
    types: dict[str, Any] = {"user": np.uint32, "item": np.uint32, "key": np.int64}
    types |= {f"label{n}": np.uint32 for n in range(len(columns.actions))}
    types |= {f"strength{n}": np.float32 for n in range(len(columns.strengths))}
    encoded = Encoded(Spool(folder, types), Dictionary(), Dictionary(), [Dictionary() for _ in columns.actions])
    keys: TimeKeys | OrderKeys = TimeKeys() if columns.order is None else OrderKeys()
    for source, first_row, frame in _batches(sources, columns, report):
        encoded.rows_read += len(frame)
        rows = _Rows(source.path, first_row, frame)
        if drop_incomplete:
            rows = rows.complete([c for c in (columns.user, columns.item, columns.key) if c])
            encoded.incomplete += len(frame) - len(rows.frame)
        if len(rows.frame):
            encoded.spool.append(_columns_of(rows, columns, encoded, keys))
    return encoded


@dataclass
class _Rows:
    """A batch and where it comes from."""

    path: Path
    first_row: int
    frame: pl.DataFrame
    kept: Any = None

    def place(self, column: str) -> Place:
        return Place(self.path, column, self.first_row, self.kept)

    def present(self, column: str) -> pl.Series:
        """Return `column`, refusing nulls."""
        values = self.frame[column]
        if values.dtype.is_float():
            values = values.fill_nan(None)
        if values.has_nulls():
            self.place(column).check(
                values.is_null().to_numpy(), "is empty; fill it in, or leave such rows out with --drop-incomplete"
            )
        return values

    def complete(self, columns: list[str]) -> _Rows:
        """Return the rows with neither null nor NaN in `columns`."""
        whole = np.ones(len(self.frame), bool)
        for name in columns:
            values = self.frame[name]
            whole &= (values.fill_nan(None) if values.dtype.is_float() else values).is_not_null().to_numpy()
        if whole.all():
            return self
        kept = np.flatnonzero(whole)
        return _Rows(self.path, self.first_row, self.frame[kept], kept)

    def text(self, column: str) -> pl.Series:
        values = self.present(column)
        if values.dtype.is_nested():
            raise InputError(
                f"{self.path}: column {column!r} is of type {values.dtype}, which is no id; choose another"
            )
        try:
            return as_text(values)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None

    def numbers(self, column: str) -> Any:
        """Return a strength (rows,) float32, NaN where it is missing."""
        import polars as pl

        values = self.frame[column]
        if values.dtype == pl.String:
            numbers = values.str.strip_chars().cast(pl.Float32, strict=False)
            bad = (numbers.is_null() & values.is_not_null()).to_numpy()
            self.place(column).check(bad, "holds {!r}, which is not a number (a strength is one)", values)
            values = numbers
        if not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
            raise InputError(f"{self.path}: column {column!r} is of type {values.dtype}; a strength is a number")
        numbers = values.cast(pl.Float32, strict=False).fill_null(float("nan"))
        beyond = "holds {!r}, which is infinite or too large for float32; mend it, or leave it empty"
        self.place(column).check(numbers.is_infinite().to_numpy(), beyond, self.frame[column])
        return numbers.to_numpy()


def _columns_of(rows: _Rows, columns: Columns, encoded: Encoded, keys: TimeKeys | OrderKeys) -> dict[str, Any]:
    found: dict[str, Any] = {
        "user": encoded.users.encode(rows.text(columns.user)),
        "item": encoded.items.encode(rows.text(columns.item)),
    }
    if columns.key is None:
        found["key"] = np.arange(encoded.spool.rows, encoded.spool.rows + len(rows.frame))
    else:
        found["key"] = keys(rows.present(columns.key), rows.place(columns.key))
    for n, (name, labels) in enumerate(zip(columns.actions, encoded.labels, strict=True)):
        found[f"label{n}"] = labels.encode(as_text(rows.frame[name]))
    for n, name in enumerate(columns.strengths):
        found[f"strength{n}"] = rows.numbers(name)
    return found


def _batches(sources: Sequence[Source], columns: Columns, report: Report) -> Iterator[tuple[Source, int, pl.DataFrame]]:
    import polars as pl

    total, before = sum(source.size for source in sources), 0
    for source in sources:
        first_row = 1
        for batch, done in source.batches(columns.used):
            yield source, first_row, pl.DataFrame(pl.from_arrow(batch))
            first_row += batch.num_rows
            report("reading", before + done, total)
        before += source.size
