"""From logs to a prepared data set.

    sources → encode (one pass) → order (by user range, on disk) → filter → events, users, items, card

Memory grows with the number of users and items, not with that of events: those stay on disk, beside the data set
that is being written, and the data set appears only when it is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longview.config import parse
from longview.data.actions import action_bits
from longview.data.assemble import Entities, PreparedLog
from longview.data.columns import Columns, choose_columns, require_columns
from longview.data.dataset import PreparedData
from longview.data.encode import Report, encode
from longview.data.features import Kind, read_features
from longview.data.filters import Kept, filter_rows
from longview.data.ids import number_in_order, to_arrow_ids
from longview.data.meta import SplitSpec
from longview.data.options import PrepareConfig
from longview.data.order import Numbering, order_rows
from longview.data.readers import Source, expand, open_source
from longview.data.scratch import scratch_directory
from longview.errors import InputError
from longview.files import atomic_directory

if TYPE_CHECKING:
    import polars as pl

Paths = Sequence[str | Path]


def prepare(
    inputs: str | Path | Paths,
    *,
    out: str | Path,
    overwrite: bool = False,
    report: Report | None = None,
    **options: Any,
) -> PreparedData:
    """Read the logs `inputs` (files, folders, glob patterns), write a prepared data set to `out` and open it.

    Options are the fields of `PrepareConfig`. `report(stage, done, total)` is called as the work goes on; a `total`
    of 0 means it is unknown. Rows that repeat (user, item, time) are one event: their actions are united, of their
    strengths the last counts. Events of a user at the same time keep their order of appearance.

    Example:
        >>> data = prepare("events.parquet", out="data/shop", split="global-time")  # doctest: +SKIP
        >>> data.meta.card["events"]  # doctest: +SKIP

    Raises:
        InputError: an input, column, row, value or option that cannot be used; `out` is as it was.
        LongviewError: the disk is full; `out` is as it was.
    """
    config = parse(PrepareConfig, options, "prepare")
    out, report = Path(out), report or _silent
    sources, columns = open_log(inputs, config)
    split = _split_spec(config, columns, sources[0].path)
    _protect(out, [*(source.path for source in sources), config.items, config.users], overwrite)
    with atomic_directory(out, overwrite=overwrite) as work, scratch_directory(work, out) as scratch:
        log = _read(sources, columns, config, scratch, report)
        log.write(work, scratch, config.name or out.resolve().name, split, report)
    report("writing", 1, 1)
    return PreparedData.open(out)


def open_log(inputs: str | Path | Paths, config: PrepareConfig) -> tuple[list[Source], Columns]:
    """Return the files that `inputs` name and the role of each column, before anything of length is read.

    Raises:
        InputError: a file that is missing or of a format that cannot be read, or columns that do not fit.
    """
    sources = [open_source(path) for path in expand([inputs] if isinstance(inputs, str | Path) else inputs)]
    columns = choose_columns(sources[0], config.choice)
    for source in sources[1:]:
        require_columns(source, columns, sources[0].path)
    return sources, columns


def _read(sources: list[Source], columns: Columns, config: PrepareConfig, scratch: Path, report: Report) -> PreparedLog:
    encoded = encode(sources, columns, scratch, drop_incomplete=config.drop_incomplete, report=report)
    actions, bits = action_bits(columns.actions, encoded.labels)
    user_ids, users = _number(encoded.users.values())
    item_ids, items = _number(encoded.items.values())
    numbering = Numbering(users, items, bits)
    ordered = order_rows(encoded, numbering, scratch, keep_duplicates=config.keep_duplicates, report=report)
    kept = filter_rows(
        ordered.spool,
        min_user_events=config.min_user_events,
        min_item_events=config.min_item_events,
        report=report,
    )
    _refuse_hopeless(kept, columns, item_ids)
    return PreparedLog(
        inputs=tuple(source.path for source in sources),
        columns=columns,
        encoded=encoded,
        ordered=ordered,
        kept=kept,
        actions=actions,
        users=_entities("user", user_ids, kept.users, columns.user, config),
        items=_entities("item", item_ids, kept.items, columns.item, config),
        simulated=config.simulated,
    )


def _number(ids: pl.Series) -> tuple[pl.Series, npt.NDArray[np.int32]]:
    """Return `ids` (given by code) in their order, and the place of each code in it."""
    order = number_in_order(ids)
    places = np.empty(len(order), np.int32)
    places[order] = np.arange(len(order), dtype=np.int32)
    return ids.gather(order), places


def _entities(kind: Kind, ids: pl.Series, kept: npt.NDArray[np.bool_], column: str, config: PrepareConfig) -> Entities:
    import polars as pl

    ids = ids.filter(pl.Series(kept))
    path = config.items if kind == "item" else config.users
    if path is not None:
        features = read_features(path, ids, kind, id_column=column, title=config.title, category=config.category)
        return Entities.of(features, path)
    table = pa.table({"id": to_arrow_ids(ids)})
    if kind == "item":
        table = table.append_column("title", pa.nulls(len(ids), pa.string()))
    return Entities(table, None)


def _refuse_hopeless(kept: Kept, columns: Columns, item_ids: pl.Series) -> None:
    filtered = "; or the filters remove too much" if kept.removed else ""
    if np.count_nonzero(kept.items) == 1:
        raise InputError(
            f"every event is of the one item {item_ids[int(np.argmax(kept.items))]!r}, so there is nothing to "
            f"recommend; check the item column ({columns.item!r}, --item){filtered}"
        )
    if int(kept.user_events[kept.users].max()) < 2:
        raise InputError(
            "no user has two events, so there is nothing to learn from or to predict; check the user column "
            f"({columns.user!r}, --user): is it the id of an event?{filtered}"
        )


def _split_spec(config: PrepareConfig, columns: Columns, path: Path) -> SplitSpec:
    if config.split == "global-time" and columns.time is None:
        raise InputError(
            f"{path}: the split global-time needs a time column, and this log has order only: name the time column "
            "(--time), or use --split leave-last-out"
        )
    kind = config.split or ("leave-last-out" if columns.time is None else "global-time")
    return SplitSpec(kind=kind, quantile=config.quantile)


def _protect(out: Path, read: Sequence[Path | None], overwrite: bool) -> None:
    """Refuse to replace a directory that holds an input, or that is something else than a prepared data set."""
    target = out.absolute()
    for path in read:
        if path is not None and target in (path.absolute(), *path.absolute().parents):
            raise InputError(f"{out} holds the input {path}: writing there would replace it; choose another directory")
    foreign = not out.is_dir() or (any(out.iterdir()) and not (out / "meta.json").exists())
    if overwrite and out.exists() and foreign:
        raise InputError(f"{out} is not a prepared data set, so it is not overwritten: remove it, or choose another")


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
