"""A lifelong log as a prepared data set, written directly, a block of users at a time; and the oracle beside it.

A log of 10⁸ events would take long to write as text and to read again, and its order is known: so there is no
`longview prepare` between. `oracle.arrow` (see `longview.data.simulator.oracle`) describes the newest events.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longview.data.dataset import PreparedData, fingerprint, write_arrow
from longview.data.mapped import MappedColumns
from longview.data.meta import Meta, SplitSpec
from longview.data.scratch import scratch_directory
from longview.data.simulator.lifelong.actions import ACTIONS, STRENGTH
from longview.data.simulator.lifelong.catalogue import make_catalogue
from longview.data.simulator.lifelong.config import LifelongConfig, component_names
from longview.data.simulator.lifelong.generate import Histories, blocks
from longview.data.simulator.lifelong.past import Past
from longview.data.simulator.lifelong.predict import predict
from longview.data.spool import Spool
from longview.files import atomic_directory, write_json

TYPES = {"item": np.int32, "timestamp": np.int64, "action": np.int64, f"strength_{STRENGTH}": np.float32}
Progress = Callable[[int, int], None]
CARD = """\
# Data card: {name}

> simulated data: nothing here is real; `longview simulate --kind lifelong` drew it from a random number generator

{events} events of {users} users on {items} items, as a prepared data set (leave-last-out). Actions: view, click, like,
buy; strength: watch (seconds). `oracle.arrow` holds the best possible prediction of the newest {newest} events of each
user. Items of a user's history come again: evaluate with seen items kept in.

| rule | |
|---|---|
{rules}"""


def write_lifelong(
    config: LifelongConfig, target: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> PreparedData:
    """Write the histories of all users of `config` as a prepared data set, atomically, and open it.

    Memory is that of a block of users (half a GiB with the libraries) and of the oracle's rows, however many users.

    Args:
        config: the rules.
        target: directory to write.
        overwrite: replace `target` if it exists.
        progress: called with (users done, users).

    Raises:
        InputError: `target` exists and `overwrite` is false.
    """
    target = Path(target)
    catalogue = make_catalogue(config)
    lengths: list[npt.NDArray[np.int64]] = []
    described: list[dict[str, Any]] = []
    spec = SplitSpec()
    with atomic_directory(target, overwrite=overwrite) as work, scratch_directory(work, target) as scratch:
        with Spool(scratch / "events", TYPES) as spool:
            for block in blocks(config, catalogue):
                spool.append(_columns(block))
                described.append(describe(block, spool.rows - block.num_events))
                lengths.append(np.diff(block.offsets))
                if progress is not None:
                    progress(block.first_user + block.num_users, config.users)
            columns = MappedColumns(spool)
            offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
            users, items = _users(offsets), catalogue.table()
            mark = fingerprint(users["id"], items["id"], offsets, columns["item"], columns["timestamp"], spec)
            stamps = columns["timestamp"]
            seen = (int(stamps.min()), int(stamps.max()))
            del stamps
            columns.release()
            columns.write_arrow(work / "events.arrow")
        write_arrow(work / "users.arrow", users)
        write_arrow(work / "items.arrow", items)
        write_arrow(work / "oracle.arrow", oracle_table(config, described))
        meta = Meta(
            name=target.name,
            num_users=users.num_rows,
            num_items=items.num_rows,
            num_events=int(offsets[-1]),
            has_time=True,
            time_range=seen,
            actions=ACTIONS,
            strengths=(STRENGTH,),
            split=spec,
            fingerprint=mark,
            simulated=True,
            repeats=True,
            card={"simulator": "lifelong", "config": config.model_dump(mode="json")},
        )
        write_json(work / "meta.json", meta.model_dump(mode="json"))
        (work / "card.md").write_text(_card(meta, config), encoding="utf-8")
    return PreparedData.open(target)


def describe(block: Histories, first_row: int) -> dict[str, Any]:
    """Return the columns of `oracle.arrow` for the newest events of each user; `first_row` is the block's first."""
    config = block.catalogue.config
    begin, end = block.offsets[:-1], block.offsets[1:]
    count = np.minimum(config.oracle_events, end - begin)
    from_end = np.concatenate([np.arange(n)[::-1] for n in count.tolist()])
    rows = np.repeat(end, count) - 1 - from_end
    user = np.repeat(np.arange(block.num_users), count)
    past = Past(block.catalogue, block.offsets, block.item, block.time, block.action)
    columns: dict[str, Any] = {
        "user": (block.first_user + user).astype(np.int32),
        "row": first_row + rows,
        "from_end": from_end.astype(np.int32),
        "position": (rows - begin[user]).astype(np.int32),
        "item": block.public_items[rows],
        "action": block.action[rows],
        f"strength_{STRENGTH}": block.watch[rows],
        "component": block.component[rows],
        "distance": block.distance[rows],
    }
    for window in (None, *config.windows):
        suffix = "" if window is None else f"_{window}"
        found = predict(past, rows, window)
        columns |= {f"probability{suffix}": found.probability}
        columns |= {f"better{suffix}": found.better.astype(np.int32), f"tied{suffix}": found.tied.astype(np.int32)}
        for place, name in enumerate(ACTIONS[1:]):
            columns[f"{name}{suffix}"] = found.chances[:, place].astype(np.float32)
        columns[f"{STRENGTH}{suffix}"] = found.watch.astype(np.float32)
    return columns


def oracle_table(config: LifelongConfig, described: list[dict[str, Any]]) -> pa.Table:
    """Return the described events of all blocks as one table; the schema's metadata names the windows."""
    joined = {name: np.concatenate([part[name] for part in described]) for name in described[0]}
    names = pa.array(component_names(config))
    component = pa.DictionaryArray.from_arrays(pa.array(joined.pop("component")), names)
    table = pa.table(joined).append_column("component", component)
    return table.replace_schema_metadata({"windows": ",".join(str(window) for window in config.windows)})


def _card(meta: Meta, config: LifelongConfig) -> str:
    rules = "".join(f"| {name} | {value} |\n" for name, value in config.model_dump(mode="json").items())
    return CARD.format(
        name=meta.name,
        events=f"{meta.num_events:,}",
        users=f"{meta.num_users:,}",
        items=f"{meta.num_items:,}",
        newest=config.oracle_events,
        rules=rules,
    )


def _columns(block: Histories) -> dict[str, npt.NDArray[Any]]:
    values = (block.public_items, block.time, block.action, block.watch)
    return dict(zip(TYPES, values, strict=True))


def _users(offsets: npt.NDArray[np.int64]) -> pa.Table:
    count = len(offsets) - 1
    digits = max(5, len(str(count)))
    names = pa.array([f"u{number:0{digits}d}" for number in range(1, count + 1)])
    return pa.table({"id": names, "offset": pa.array(offsets[:-1]), "length": pa.array(np.diff(offsets))})
