"""Rows by user, then key, then order of appearance; repeats of (user, item, key) merged. Bounded memory.

Users are divided into consecutive ranges of about `PARTITION_ROWS` rows. One pass writes every row to the place of
its range (a counting sort on disk), a second sorts each range in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longview.data.encode import Encoded, Report
from longview.data.spool import Column, Spool

PARTITION_ROWS = 1 << 22


@dataclass
class Ordered:
    """Sorted rows: `user`, `item` int32, `key` int64, `action` int64 (if any) and `strength<n>` float32."""

    spool: Spool
    duplicates: int
    out_of_order: int


@dataclass(frozen=True)
class Numbering:
    """From codes to numbers: `users` and `items` (codes,) int32; `bits` (codes + 1,) int64 for each label column."""

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    bits: list[npt.NDArray[np.int64]]


def order_rows(
    encoded: Encoded, numbering: Numbering, folder: Path, *, keep_duplicates: bool, report: Report
) -> Ordered:
    """Sort the rows of `encoded` into a new spool in `folder`, and delete its own.

    Rows of one user with equal keys keep their order of appearance in the inputs. Repeats of (user, item, key) are
    merged into the first unless `keep_duplicates`: actions are united, of strengths the last one given counts.
    """
    partitioned, bounds = _partition(encoded, numbering, folder / "partitions", report)
    ordered = Ordered(Spool(folder / "sorted", partitioned.types), 0, 0)
    for number, (start, stop) in enumerate(pairwise(bounds)):
        report("sorting", number, len(bounds) - 1)
        rows, descents = _sort(partitioned.read(int(start), int(stop)))
        ordered.out_of_order += descents
        if not keep_duplicates:
            before = stop - start
            rows = merge_duplicates(rows)
            ordered.duplicates += int(before) - len(rows["user"])
        ordered.spool.append(rows)
    report("sorting", 1, 1)
    partitioned.remove()
    return ordered


def _partition(
    encoded: Encoded, numbering: Numbering, folder: Path, report: Report
) -> tuple[Spool, npt.NDArray[np.int64]]:
    source = encoded.spool
    counts = np.zeros(len(numbering.users), np.int64)
    for _, rows in source.chunks("user"):
        counts += np.bincount(numbering.users[rows["user"]], minlength=len(counts))
    before = np.cumsum(counts) - counts
    partition_of_user = (before // PARTITION_ROWS).astype(np.int64)
    _, first_user, partition_of_user = np.unique(partition_of_user, return_index=True, return_inverse=True)
    bounds = np.append(before[first_user], source.rows)
    strengths = [name for name in source.types if name.startswith("strength")]
    types: dict[str, Any] = {"user": np.int32, "item": np.int32, "key": np.int64}
    types |= {"action": np.int64} if numbering.bits else {}
    target = Spool(folder, types | dict.fromkeys(strengths, np.float32))
    cursor = bounds[:-1].copy()
    for start, rows in source.chunks():
        report("grouping by user", start, source.rows)
        found = _numbered(rows, numbering, strengths)
        part = partition_of_user[found["user"]]
        order = np.argsort(part.astype(np.uint16 if len(cursor) < 1 << 16 else np.int64), kind="stable")
        sizes = np.bincount(part, minlength=len(cursor))
        begin = 0
        for number in np.flatnonzero(sizes):
            chosen = order[begin : begin + sizes[number]]
            target.write(int(cursor[number]), {name: values[chosen] for name, values in found.items()})
            cursor[number] += sizes[number]
            begin += sizes[number]
    source.remove()
    return target, bounds


def _numbered(rows: dict[str, Column], numbering: Numbering, strengths: list[str]) -> dict[str, Column]:
    found = {"user": numbering.users[rows["user"]], "item": numbering.items[rows["item"]], "key": rows["key"]}
    for n, bits in enumerate(numbering.bits):
        codes = np.minimum(rows[f"label{n}"], len(bits) - 1)  # a missing label is the last entry: no bit
        found["action"] = found["action"] | bits[codes] if "action" in found else bits[codes]
    return found | {name: rows[name] for name in strengths}


def _sort(rows: dict[str, Column]) -> tuple[dict[str, Column], int]:
    """Return the rows in order, and how many came before an earlier event of their user."""
    user = rows["user"]
    order = np.lexsort((rows["key"], user))
    descents = int(np.count_nonzero((np.diff(order) < 0) & (np.diff(user[order]) == 0)))
    return {name: values[order] for name, values in rows.items()}, descents


def merge_duplicates(rows: dict[str, Column]) -> dict[str, Column]:
    """Merge repeats of (user, item, key) in sorted `rows` into the first of each."""
    user, item, key = rows["user"], rows["item"], rows["key"]
    tied = np.zeros(len(user) + 1, bool)
    tied[1:-1] = (user[1:] == user[:-1]) & (key[1:] == key[:-1])
    candidates = np.flatnonzero(tied[:-1] | tied[1:])  # in a run of equal user and key
    if not len(candidates):
        return rows
    run = np.cumsum(~tied[:-1])[candidates]
    by_item = np.lexsort((item[candidates], run))
    candidates, run = candidates[by_item], run[by_item]
    repeat = np.zeros(len(candidates), bool)
    repeat[1:] = (run[1:] == run[:-1]) & (item[candidates][1:] == item[candidates][:-1])
    if not repeat.any():
        return rows
    group = np.cumsum(~repeat) - 1
    heads = candidates[~repeat]
    merged = dict(rows)
    for name, values in rows.items():
        if name == "action":
            merged[name] = values.copy()
            merged[name][heads] = np.bitwise_or.reduceat(values[candidates], np.flatnonzero(~repeat))
        elif name.startswith("strength"):
            given = ~np.isnan(values[candidates])
            merged[name] = values.copy()
            merged[name][heads[group[given]]] = values[candidates[given]]  # of several, the last stays
    keep = np.ones(len(user), bool)
    keep[candidates[repeat]] = False
    return {name: values[keep] for name, values in merged.items()}
