"""What quantised tables save on a GPU: lookups, candidate scores and transfers beside bfloat16.

A lookup is timed from a table in the device's memory; candidates are scored there too. A transfer is what serving does
with a table in the host's memory: rows of a batch travel to the device and are dequantised there, either gathered
beforehand and copied, or read by the kernel itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longview.bench.device import device_interleaved
from longview.bench.timing import Timing
from longview.ops.quantisation import QuantisedTable

WIDTH, LOOKUPS, HOST_ROWS, ID_SETS = 512, (65536, 524288), 2_000_000, 8
QUERIES, CANDIDATES = 256, 4096
TABLES_METHOD = (
    "rows of 512, bfloat16 results; lookups: other ids every round, uniform or Zipf (exponent 1) over shuffled rows; "
    "candidates: 4,096 of each of 256 queries, scored; transfer: rows of a batch gathered beforehand in pinned memory, "
    "copied and dequantised, or read by the kernel from a table in pinned memory; times_faster: median of bfloat16 "
    "over this median"
)


@torch.no_grad()
def bench_tables(num_rows: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each kind of table of `num_rows` rows: its size, its error, and its times."""
    weight = torch.empty(num_rows, WIDTH, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
    found = []
    for bits, group in ((4, 64), (4, 32), (8, 64)):
        table = QuantisedTable.from_table(weight, bits, group)
        ids = torch.arange(0, num_rows, max(1, num_rows // 4096), device="cuda")
        close = table.lookup(ids).sub_(weight[ids].float()).norm() / weight[ids].float().norm()
        row: dict[str, Any] = {"bits": bits, "group": group, "rows": num_rows, "width": WIDTH}
        row |= {"times_smaller": round(weight.nbytes / table.nbytes, 3), "relative_error": float(close)}
        row["lookups"] = [_lookups(weight, table, n, kind, rounds) for n in LOOKUPS for kind in ("uniform", "zipf")]
        row["candidates"] = _candidates(weight, table, rounds)
        row["transfer"] = _transfer(weight[:HOST_ROWS], bits, group, rounds)
        found.append(row)
        del table
        torch.cuda.empty_cache()
    return found


def _lookups(weight: Tensor, table: QuantisedTable, n: int, kind: str, rounds: int) -> dict[str, Any]:
    sets = itertools.cycle([_ids(len(weight), n, kind, seed) for seed in range(ID_SETS)])
    held = {"ids": next(sets)}

    def plain() -> Tensor:
        held["ids"] = next(sets)  # both providers of a round see the same ids in turn
        return F.embedding(held["ids"], weight)

    timings = device_interleaved(
        {"bfloat16": plain, "quantised": lambda: table.lookup(held["ids"], torch.bfloat16)}, rounds=rounds
    )
    return {"ids": n, "kind": kind, **_beside_plain(timings)}


def _candidates(weight: Tensor, table: QuantisedTable, rounds: int) -> dict[str, Any]:
    queries = torch.randn(QUERIES, WIDTH, device="cuda").bfloat16()
    ids = _ids(len(weight), QUERIES * CANDIDATES, "uniform", 0).view(QUERIES, CANDIDATES)
    timings = device_interleaved(
        {
            "bfloat16": lambda: torch.bmm(F.embedding(ids, weight), queries[:, :, None]),
            "quantised": lambda: table.scores(queries, ids),
        },
        rounds=rounds,
    )
    return {"queries": QUERIES, "candidates": CANDIDATES, **_beside_plain(timings)}


def _transfer(weight: Tensor, bits: int, group: int, rounds: int) -> dict[str, Any]:
    n = LOOKUPS[0]
    ids = _ids(len(weight), n, "uniform", 0)
    table = QuantisedTable.from_table(weight, bits, group)
    plain, packed = weight[ids].cpu().pin_memory(), table.rows[ids].cpu().pin_memory()
    arrived, order = QuantisedTable(n, weight.shape[1], bits, group).cuda(), torch.arange(n, device="cuda")
    into = torch.empty(n, weight.shape[1], dtype=weight.dtype, device="cuda")
    table.pin_memory()

    def copied() -> Tensor:
        arrived.rows.copy_(packed, non_blocking=True)
        return arrived.lookup(order, torch.bfloat16)

    timings = device_interleaved(
        {
            "bfloat16": lambda: into.copy_(plain, non_blocking=True),
            "quantised": copied,
            "quantised, read from the host's memory by the kernel": lambda: table.lookup(ids, torch.bfloat16),
        },
        rounds=rounds,
    )
    return {"ids": n, **_beside_plain(timings)}


def _ids(num_rows: int, n: int, kind: str, seed: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    if kind == "uniform":
        return torch.randint(num_rows, (n,), generator=generator, device="cuda")
    share = torch.rand(n, generator=generator, device="cuda", dtype=torch.float64)
    rank = (float(num_rows) ** share).long().clamp(max=num_rows) - 1  # Zipf with exponent 1
    return rank * 7_368_787 % num_rows  # a prime that spreads the ranks over the table


def _beside_plain(timings: Mapping[str, Timing]) -> dict[str, Any]:
    plain = timings["bfloat16"].median
    return {
        name: {
            **{key.replace("_ms", "_us"): round(1e3 * value, 2) for key, value in timing.as_dict().items()},
            "times_faster": round(plain / timing.median, 3),
        }
        for name, timing in timings.items()
    }
