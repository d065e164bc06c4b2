"""A CSV, Parquet or Arrow table of `path, label` and, where it has one, `split` and `category`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from longview.data.images.listing import Entry, Listing, Split, some, split_named
from longview.data.readers import open_source
from longview.errors import InputError, suggestion

PATH = ("path", "image", "image_path", "file", "filename", "file_name", "image_name", "key")
LABEL = ("label", "class", "class_id", "item_id", "label_id", "class_name", "identity", "target")
SPLIT = ("split", "partition", "subset", "evaluation_status")
CATEGORY = ("category", "super_class", "super_class_id", "super_label")


def read_table(path: Path, *, path_column: str | None = None, label_column: str | None = None) -> Listing:
    """List the rows of the table at `path`. Columns that are not named are found by the usual names.

    Raises:
        InputError: a table that cannot be read, lacks a column, has no rows, rows without a path, negative numbers as
            labels or a split of unknown name; rows are named as the reader counts them, from 1.
    """
    source = open_source(path)
    names = {
        "path": _column(source.names, path_column, PATH, path, "path"),
        "label": _column(source.names, label_column, LABEL, path, "label"),
        "split": next((name for name in source.names if name.lower() in SPLIT), None),
        "category": next((name for name in source.names if name.lower() in CATEGORY), None),
    }
    chosen = tuple(dict.fromkeys(name for name in names.values() if name is not None))
    table = source.table(text=chosen)
    rows = {role: _text(table[name]) for role, name in names.items() if name is not None}
    paths, labels = rows["path"], rows["label"]
    if not paths:
        raise InputError(f"{path}: no rows below the names of its columns: a path and a label in each expected")
    lacking = _lacking(paths)
    if lacking:
        raise InputError(f"{path}: no value in the column {names['path']!r}: {some(lacking)}")
    _refuse_negative(path, names["label"], labels)
    places = [f"{path}, row {row}" for row in range(1, len(paths) + 1)]
    splits: Sequence[Split | None] = [None] * len(paths)
    if "split" in rows:
        lacking = _lacking(rows["split"])
        if lacking:
            raise InputError(
                f"{path}: no value in the column {names['split']!r}: {some(lacking)}; name a split in every row, or "
                "leave the column out"
            )
        splits = [split_named(str(value), place) for value, place in zip(rows["split"], places, strict=True)]
    categories = rows.get("category", [None] * len(paths))
    entries = [
        Entry(str(key), label, split, category, place=place)
        for key, label, split, category, place in zip(paths, labels, splits, categories, places, strict=True)
    ]
    return Listing("table", entries)


def _lacking(values: Sequence[str | None]) -> list[str]:
    """Return the rows without a value, as the reader counts them."""
    return [f"row {row}" for row, value in enumerate(values, 1) if not value]


def _column(names: Sequence[str], given: str | None, usual: Sequence[str], path: Path, role: str) -> str:
    if given is not None:
        if given not in names:
            raise InputError(f"{path}: no column {given!r}{suggestion(given, names)}; columns: {', '.join(names)}")
        return given
    lower = {name.lower(): name for name in names}
    found = next((lower[name] for name in usual if name in lower), None)
    if found is None:
        raise InputError(
            f"{path}: no column for the {role} of an image (such as {usual[0]!r}): name it with --image {role}=COLUMN "
            f"(in Python {role}='COLUMN'); columns: {', '.join(names)}"
        )
    return found


def _text(column: pa.ChunkedArray) -> list[str | None]:
    """Return the values as text, None where there is none. Whole numbers stay whole, NaN is no value."""
    return [_one(value) for value in column.to_pylist()]


def _one(value: Any) -> str | None:
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of numbers with gaps
    text = str(value).strip()
    return text or None


def _refuse_negative(path: Path, column: str | None, labels: Sequence[str | None]) -> None:
    """Where all labels are whole numbers, a negative one is a mark of something else, and no class."""
    given = [label for label in labels if label is not None]
    if not all(label.lstrip("-").isdigit() for label in given):
        return
    negative = [f"row {row}" for row, label in enumerate(labels, 1) if label is not None and label.startswith("-")]
    if negative:
        raise InputError(
            f"{path}: negative numbers in the column {column!r}, which are no classes: {some(negative)}; leave those "
            "rows out, or give the label as text"
        )
