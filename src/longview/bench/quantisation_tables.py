"""What quantised tables save on a GPU: lookups, sums by bag, candidate scores and transfers beside bfloat16.

Lookups and bags read a table in the device's memory; candidates are scored there too. A transfer is what serving does
with a table in the host's memory: rows of a batch travel to the device and are dequantised there, either gathered
beforehand and copied, or read by the kernel itself.

Beside each time stand the bytes that have to move, and what share of a plain copy's speed that is: a lookup that writes
its rows out saves what it reads and not what it writes, a sum by bag saves nearly all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longview.bench.device import captured, device_interleaved
from longview.bench.timing import Timing
from longview.ops.quantisation import QuantisedTable

Call = Callable[[Tensor], object]
KINDS = {128: ((4, 64), (8, 64)), 512: ((4, 64), (4, 32), (8, 64))}  # bits and group for each width
LOOKUPS, BAGS = (65536, 524288), ((16384, 20), (4096, 100))
HOST_ROWS, ID_SETS, COPIED = 2_000_000, 4, 1 << 30
QUERIES, CANDIDATES = 256, 4096
PLAIN, TRITON, OURS = "bfloat16", "bfloat16, Triton", "quantised"
TABLES_METHOD = (
    "bfloat16 results; ids uniform or Zipf (exponent 1) over shuffled rows, four sets of them in turn; how: as a CUDA "
    "graph for each set, or launch by launch; lookups: F.embedding, a Triton kernel of the quantised one's form, and "
    "QuantisedTable.lookup; pooled: sums of bags of one size by F.embedding_bag, such a kernel, and "
    "QuantisedTable.pooled; candidates: 4,096 of each of 256 queries, gathered by F.embedding and multiplied, or by "
    "QuantisedTable.scores; transfer: rows of a batch gathered beforehand in pinned memory, copied and dequantised, or "
    "read by the kernel from a table in pinned memory; times_faster: median of `bfloat16`, by torch's own operations, "
    "over this median; times_faster_than_triton: that of the Triton kernel over it; bytes: of ids, rows read (each "
    "time) and rows written; of_copy_speed: bytes over time, as a share of those of a copy of 1 GiB on the device"
)


@torch.no_grad()
def bench_tables(num_rows: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each kind of table of `num_rows` rows: its size, its error, and its times."""
    speed = copy_speed(rounds)
    found = []
    for width, kinds in KINDS.items():
        weight = torch.empty(num_rows, width, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
        for bits, group in kinds:
            table = QuantisedTable.from_table(weight, bits, group)
            row: dict[str, Any] = {"bits": bits, "group": group, "rows": num_rows, "width": width}
            row |= {"times_smaller": round(weight.nbytes / table.nbytes, 3), "relative_error": _error(weight, table)}
            row["copy_tb_per_s"] = round(speed / 1e12, 3)
            row["lookups"] = list(_lookups(weight, table, rounds, speed))
            row["pooled"] = list(_pooled(weight, table, rounds, speed))
            row["candidates"] = _candidates(weight, table, rounds)
            row["transfer"] = _transfer(weight[:HOST_ROWS], bits, group, rounds)
            found.append(row)
            del table
            torch.cuda.empty_cache()
        del weight
    return found


def copy_speed(rounds: int) -> float:
    """Return the bytes a second, read and written, of a plain copy within the device's memory."""
    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    timing = device_interleaved({"copy": lambda: target.copy_(source)}, rounds=rounds)["copy"]
    return timing.rate(2 * COPIED)


def _error(weight: Tensor, table: QuantisedTable) -> float:
    ids = torch.arange(0, len(weight), max(1, len(weight) // 4096), device="cuda")
    exact = weight[ids].float()
    return float((table.lookup(ids, torch.bfloat16).float() - exact).norm() / exact.norm())


def _lookups(weight: Tensor, table: QuantisedTable, rounds: int, speed: float) -> Iterator[dict[str, Any]]:
    from longview.bench.quantisation_peer import gathered

    providers: dict[str, Call] = {
        PLAIN: lambda ids: F.embedding(ids, weight),
        TRITON: partial(gathered, weight),
        OURS: lambda ids: table.lookup(ids, torch.bfloat16),
    }
    for n, kind in itertools.product(LOOKUPS, ("uniform", "zipf")):
        read = dict.fromkeys((PLAIN, TRITON), n * weight[0].nbytes) | {OURS: n * table.rows[0].nbytes}
        moved = {name: 8 * n + size + n * weight[0].nbytes for name, size in read.items()}
        for how, timings in _both_ways(providers, _id_sets(len(weight), n, kind), rounds):
            yield {"ids": n, "kind": kind, "how": how, **_beside_plain(timings, moved, speed)}


def _pooled(weight: Tensor, table: QuantisedTable, rounds: int, speed: float) -> Iterator[dict[str, Any]]:
    from longview.bench.quantisation_peer import bags as summed

    for (bags, size), kind in itertools.product(BAGS, ("uniform", "zipf")):
        n = bags * size
        offsets = torch.arange(0, n + 1, size, device="cuda")
        starts = offsets[:-1].contiguous()
        providers: dict[str, Call] = {
            PLAIN: partial(_torch_bags, weight, starts),
            TRITON: partial(summed, weight, offsets=offsets),
            OURS: partial(table.pooled, offsets=offsets, dtype=torch.bfloat16),
        }
        read = dict.fromkeys((PLAIN, TRITON), n * weight[0].nbytes) | {OURS: n * table.rows[0].nbytes}
        moved = {name: 8 * (n + bags) + size + bags * weight[0].nbytes for name, size in read.items()}
        for how, timings in _both_ways(providers, _id_sets(len(weight), n, kind), rounds):
            found = _beside_plain(timings, moved, speed)
            yield {"bags": bags, "ids_a_bag": size, "kind": kind, "how": how, **found}


def _torch_bags(weight: Tensor, starts: Tensor, ids: Tensor) -> Tensor:
    return F.embedding_bag(ids, weight, starts, mode="sum")


def _both_ways(
    providers: Mapping[str, Call], sets: Sequence[Tensor], rounds: int
) -> Iterator[tuple[str, dict[str, Timing]]]:
    """Yield `graph` and `launches`, each with the time of every provider, whose calls meet the sets in turn."""
    for how in ("graph", "launches"):
        calls = {}
        for name, call in providers.items():
            given: list[Callable[[], object]] = [partial(call, ids) for ids in sets]
            if how == "graph":
                given = [captured(one).replay for one in given]
            calls[name] = _in_turn(given)
        yield how, device_interleaved(calls, rounds=rounds)
        del calls, given  # graphs keep the memory of their results
        torch.cuda.empty_cache()


def _in_turn(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def _candidates(weight: Tensor, table: QuantisedTable, rounds: int) -> dict[str, Any]:
    queries = torch.randn(QUERIES, weight.shape[1], device="cuda").bfloat16()
    ids = _ids(len(weight), QUERIES * CANDIDATES, "uniform", 0).view(QUERIES, CANDIDATES)
    timings = device_interleaved(
        {
            PLAIN: lambda: torch.bmm(F.embedding(ids, weight), queries[:, :, None]),
            OURS: lambda: table.scores(queries, ids),
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
            PLAIN: lambda: into.copy_(plain, non_blocking=True),
            OURS: copied,
            "quantised, read from the host's memory by the kernel": lambda: table.lookup(ids, torch.bfloat16),
        },
        rounds=rounds,
    )
    return {"ids": n, **_beside_plain(timings)}


def _id_sets(num_rows: int, n: int, kind: str) -> list[Tensor]:
    return [_ids(num_rows, n, kind, seed) for seed in range(ID_SETS)]


def _ids(num_rows: int, n: int, kind: str, seed: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    if kind == "uniform":
        return torch.randint(num_rows, (n,), generator=generator, device="cuda")
    share = torch.rand(n, generator=generator, device="cuda", dtype=torch.float64)
    rank = (float(num_rows) ** share).long().clamp(max=num_rows) - 1  # Zipf with exponent 1
    return rank * 7_368_787 % num_rows  # a prime that spreads the ranks over the table


def _beside_plain(
    timings: Mapping[str, Timing], moved: Mapping[str, int] | None = None, speed: float = 1.0
) -> dict[str, Any]:
    """Return times in microseconds, ratios, and, where the bytes `moved` are known, their speed beside a copy's."""
    found: dict[str, Any] = {}
    for name, timing in timings.items():
        found[name] = {key.replace("_ms", "_us"): round(1e3 * value, 2) for key, value in timing.as_dict().items()}
        found[name]["times_faster"] = round(timings[PLAIN].median / timing.median, 3)
        if TRITON in timings:
            found[name]["times_faster_than_triton"] = round(timings[TRITON].median / timing.median, 3)
        if moved is not None:
            found[name]["bytes"] = moved[name]
            found[name]["of_copy_speed"] = round(timing.rate(moved[name]) / speed, 3)
    return found
