"""A prepared data set on disk, memory-mapped.

Layout (Arrow IPC files, any Arrow tool opens them):

* `meta.json`: `Meta`.
* `events.arrow`: `item` int32; `timestamp` int64 (seconds) where the log has time; `action` int64 bitmask
  where it has actions; `strength_<name>` float32. Sorted by user, then time, then order of appearance.
* `users.arrow`: `id` string, `offset` int64, `length` int64, further features.
* `items.arrow`: `id` string, `title` string (may be null), further features.

Users and items are numbered in the order of their external ids (numeric when all are integers).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longview.config import parse
from longview.data.meta import SCHEMA_VERSION, Meta, SplitSpec
from longview.data.splits import Split
from longview.errors import InputError
from longview.files import atomic_directory, write_json

IntArray = npt.NDArray[np.integer[Any]]


class IdMap:
    """External ids (strings) to catalogue indices and back."""

    def __init__(self, ids: pa.Array) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _lookup(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.ids.to_pylist())}

    def index(self, names: Sequence[Any]) -> npt.NDArray[np.int64]:
        """Return the index of each name, −1 where unknown. Names are compared as text."""
        lookup = self._lookup
        return np.fromiter((lookup.get(str(name), -1) for name in names), np.int64, len(names))

    def external(self, indices: IntArray) -> pa.Array:
        """Return the external ids (string) of `indices`."""
        return self.ids.take(pa.array(indices, pa.int64()))


@dataclass(frozen=True)
class PreparedData:
    """A prepared data set. Arrays are read-only views of the memory-mapped files.

    Example:
        >>> data = PreparedData.open("data/ml-1m")  # doctest: +SKIP
        >>> data.num_users, data.items[data.offsets[0] : data.offsets[1]]  # doctest: +SKIP
    """

    path: Path | None
    meta: Meta
    events: pa.Table
    users: pa.Table
    item_table: pa.Table

    @classmethod
    def open(cls, path: str | Path) -> PreparedData:
        """Open the data set in directory `path`.

        Raises:
            InputError: no prepared data set there, one of another schema version, or a damaged one.
        """
        path = Path(path)
        meta = _read_meta(path)
        tables = [_read_arrow(path / name) for name in ("events.arrow", "users.arrow", "items.arrow")]
        data = cls(path, meta, *tables)
        counts = (data.users.num_rows, data.item_table.num_rows, data.events.num_rows)
        if counts != (meta.num_users, meta.num_items, meta.num_events):
            raise InputError(
                f"{path}: the files hold {counts} users, items and events but meta.json says "
                f"{(meta.num_users, meta.num_items, meta.num_events)}; prepare the data again"
            )
        return data

    @property
    def num_users(self) -> int:
        return self.meta.num_users

    @property
    def num_items(self) -> int:
        return self.meta.num_items

    @property
    def num_events(self) -> int:
        return self.meta.num_events

    @property
    def fingerprint(self) -> str:
        return self.meta.fingerprint

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """(num_users + 1,) int64: user u's events are rows offsets[u] to offsets[u + 1]."""
        return np.concatenate([_numpy(self.users, "offset"), [self.num_events]]).astype(np.int64)

    @cached_property
    def items(self) -> npt.NDArray[np.int32]:
        """(num_events,) int32 catalogue index of every event."""
        return _numpy(self.events, "item")

    @cached_property
    def timestamps(self) -> npt.NDArray[np.int64] | None:
        """(num_events,) int64 seconds, or None for order-only data."""
        return _numpy(self.events, "timestamp") if self.meta.has_time else None

    @cached_property
    def actions(self) -> npt.NDArray[np.int64] | None:
        """(num_events,) int64: bit b set means the event carries action `meta.actions[b]`."""
        return _numpy(self.events, "action") if self.meta.actions else None

    def strength(self, name: str) -> npt.NDArray[np.float32]:
        """Return the strength column `name` (num_events,) float32; NaN where the event has none."""
        return _numpy(self.events, f"strength_{name}")

    @cached_property
    def user_ids(self) -> IdMap:
        return IdMap(self.users["id"].combine_chunks())

    @cached_property
    def item_ids(self) -> IdMap:
        return IdMap(self.item_table["id"].combine_chunks())

    @cached_property
    def split(self) -> Split:
        """Training, validation and test, as `meta.split` says."""
        return Split.of(self.meta.split, self.offsets, self.timestamps)


def write_prepared(
    target: Path,
    *,
    name: str,
    events: Mapping[str, Any],
    users: pa.Table,
    items: pa.Table,
    split: SplitSpec,
    actions: Sequence[str] = (),
    card: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    simulated: bool = False,
) -> PreparedData:
    """Write a data set that fits in memory, atomically, and open it.

    `events` maps column names (see the module docstring) to arrays already sorted by user and time;
    `users` has `id` and `length` in that order, `items` has `id` (and usually `title`).
    """
    table = pa.table(dict(events))
    lengths = users["length"].to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    users = users.drop_columns([c for c in ("offset", "length") if c in users.column_names])
    users = users.append_column("offset", pa.array(offsets[:-1])).append_column("length", pa.array(np.diff(offsets)))
    stamps = table["timestamp"].to_numpy() if "timestamp" in table.column_names else None
    meta = Meta(
        name=name,
        num_users=users.num_rows,
        num_items=items.num_rows,
        num_events=table.num_rows,
        has_time=stamps is not None,
        time_range=None if stamps is None else (int(stamps.min()), int(stamps.max())),
        actions=tuple(actions),
        strengths=tuple(c.removeprefix("strength_") for c in table.column_names if c.startswith("strength_")),
        split=split,
        fingerprint=fingerprint(users["id"], items["id"], offsets, table["item"].to_numpy(), stamps, split),
        simulated=simulated,
        card=dict(card or {}),
    )
    with atomic_directory(Path(target), overwrite=overwrite) as work:
        for file, content in (("events", table), ("users", users), ("items", items)):
            write_arrow(work / f"{file}.arrow", content)
        write_json(work / "meta.json", meta.model_dump(mode="json"))
    return PreparedData.open(target)


def fingerprint(
    user_ids: Any,
    item_ids: Any,
    offsets: IntArray,
    items: IntArray,
    timestamps: IntArray | None,
    split: SplitSpec,
) -> str:
    """Hash the ordered sequences, their ids and the split: equal fingerprints mean comparable results."""
    digest = hashlib.sha256()
    for ids in (user_ids, item_ids):
        for start in range(0, len(ids), 1 << 18):  # in pieces: there may be more names than fit in memory as objects
            names = "\x1f".join(ids[start : start + (1 << 18)].to_pylist())
            digest.update((names if start == 0 else f"\x1f{names}").encode())
    digest.update(np.ascontiguousarray(offsets, np.int64).tobytes())
    for array, dtype in ((items, np.int32), (timestamps, np.int64)):
        if array is not None:
            for start in range(0, len(array), 1 << 24):
                digest.update(np.ascontiguousarray(array[start : start + (1 << 24)], dtype).tobytes())
    digest.update(split.model_dump_json().encode())
    return digest.hexdigest()[:16]


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write `table` as one Arrow IPC file of a single record batch, so that columns map without a copy."""
    table = table.combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, table.num_rows))


def _read_meta(path: Path) -> Meta:
    file = path / "meta.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: not a prepared data set (no meta.json); run `longview prepare` first") from None
    except ValueError as error:
        raise InputError(f"{file}: damaged ({error}); prepare the data again") from None
    if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{file}: not schema version {SCHEMA_VERSION}; prepare the data again with this version")
    return parse(Meta, values, str(file))


def _read_arrow(path: Path) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: missing or damaged ({error}); prepare the data again") from None


def _numpy(table: pa.Table, column: str) -> npt.NDArray[Any]:
    chunks = table[column]
    array = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], chunks.type)
    if array.null_count:
        array = pc.fill_null(array, float("nan"))
    return np.asarray(array.to_numpy(zero_copy_only=False))
