"""What is known of items and users beside the log: titles, categories and further columns, aligned to their ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from longview.data.columns import CATEGORY, ITEM, TITLE, USER, find, resolve_column
from longview.data.ids import as_text
from longview.data.readers import open_source
from longview.errors import InputError

if TYPE_CHECKING:
    import polars as pl

Kind = Literal["item", "user"]
RESERVED = ("offset", "length")  # of users.arrow
YEAR = r"\((\d{4})\)\s*$"  # "Toy Story (1995)"


@dataclass(frozen=True)
class Features:
    """`table` has `id` (string) and the features of every id, null where the file has none.

    `missing` ids of the log are not in the file, `unused` rows of the file are not in the log, `repeated` rows of
    the file give an id again (the first row counts).
    """

    table: pa.Table
    id_column: str
    columns: dict[str, str]
    missing: int
    unused: int
    repeated: int


def read_features(
    path: Path,
    ids: pl.Series,
    kind: Kind,
    *,
    id_column: str | None = None,
    title: str | None = None,
    category: str | None = None,
) -> Features:
    """Read the features of `ids` from the file at `path`; `id_column` is what the log calls the id.

    Items get a `title` (string) and a `category` (list of strings) if the file has such columns, under whatever
    name; other columns keep theirs. Text with `|` and RecBole sequences become lists.

    Raises:
        InputError: the file cannot be read, lacks a named column, has empty ids or none of the log's.
    """
    import polars as pl

    source = open_source(path)
    id_column = id_column if id_column in source.names else find(source.names, ITEM if kind == "item" else USER)
    id_column = id_column or source.names[0]
    frame = pl.DataFrame(pl.from_arrow(source.table(text=(id_column,))))
    frame = frame.with_columns(as_text(frame[id_column]).alias(id_column))
    if not len(frame):
        raise InputError(f"{path}: there is a header but no rows")
    if frame[id_column].has_nulls():
        row = int(frame[id_column].is_null().arg_max() or 0) + 1
        raise InputError(f"{path}: row {row:,}: column {id_column!r} is empty; every {kind} needs its id")
    renamed = {} if kind == "user" else _item_columns(path, source.names, id_column, title, category)
    sequences = {name for name, recbole in source.types.items() if recbole.endswith("_seq")}
    first = frame.unique(id_column, keep="first", maintain_order=True)
    known = first[id_column].is_in(ids.implode())
    if not known.any():
        raise InputError(
            f"{path}: none of its {len(first):,} ids (column {id_column!r}, such as {first[id_column][0]!r}) is in the "
            f"log (such as {ids[0]!r}); check that the file and its id column belong to this log"
        )
    shaped = _shape(first.filter(known), id_column, renamed, sequences)
    aligned = pl.DataFrame({"id": ids}).join(shaped, on="id", how="left", maintain_order="left")
    return Features(
        table=_to_arrow(aligned),
        id_column=id_column,
        columns={new: old for old, new in renamed.items()},
        missing=len(ids) - int(known.sum()),
        unused=len(first) - int(known.sum()),
        repeated=len(frame) - len(first),
    )


def _item_columns(
    path: Path, names: tuple[str, ...], id_column: str, title: str | None, category: str | None
) -> dict[str, str]:
    """Return {column of the file: `title` or `category`}."""
    rest = [name for name in names if name != id_column]
    chosen = {
        "title": find(rest, TITLE) if title is None else resolve_column(path, names, title),
        "category": find(rest, CATEGORY) if category is None else resolve_column(path, names, category),
    }
    return {old: new for new, old in chosen.items() if old is not None}


def _shape(frame: pl.DataFrame, id_column: str, renamed: dict[str, str], sequences: set[str]) -> pl.DataFrame:
    import polars as pl

    columns, taken = [frame[id_column].alias("id")], {"id", *RESERVED, *renamed.values()}
    for name in frame.columns:
        if name == id_column:
            continue
        values, new = frame[name], renamed.get(name, name)
        if new == "title":
            values = as_text(values)
        elif values.dtype == pl.String and values.str.contains("|", literal=True).any():
            values = values.str.split("|")
        elif name in sequences:
            values = values.str.split(" ")
        if new == "category" and values.dtype != pl.List:
            values = as_text(values).reshape((-1, 1)).arr.to_list() if len(values) else values
            values = pl.select(pl.when(values.list.first().is_not_null()).then(values)).to_series()
        columns.append(values.alias(f"{new}_feature" if name not in renamed and name in taken else new))
    shaped = pl.DataFrame(columns)
    if "title" in shaped.columns and "year" not in shaped.columns:
        year = shaped["title"].str.extract(YEAR).cast(pl.Int32)
        if 2 * year.is_not_null().sum() > len(year):  # the custom of this file, not one odd title
            shaped = shaped.with_columns(year.alias("year"))
    return shaped


def _to_arrow(frame: pl.DataFrame) -> pa.Table:
    """Return `frame` with plain types that every Arrow reader knows."""
    table = frame.to_arrow()
    fields = [pa.field(field.name, _plain_type(field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_dictionary(kind):
        return pa.string()
    if pa.types.is_large_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return kind
