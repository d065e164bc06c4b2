"""Softmax losses and table updates on a GPU, forward and backward, beside torch's own, in one run.

Useful operations of a loss: three products of queries, items and width, forward and backward, whatever is computed
again. `peak_mib` is what a call needs beyond its inputs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from longview.bench.device import clocks, device_interleaved, require_gpu
from longview.bench.record import write_result
from longview.evaluation.environment import environment
from longview.ops.embedding import RowwiseAdagrad, RowwiseAdamW, RowwiseOptimiser, embedding_lookup
from longview.ops.softmax_loss import full_softmax_loss, sampled_softmax_loss

Call = Callable[[], object]
MIB = 1 << 20
METHOD = (
    "forward and backward of float32 queries and items under bfloat16 autocast; providers take turns within one run; "
    "medians of CUDA events; peak_mib: memory above the inputs, gradients included; compiled: torch.compile of "
    "functional.cross_entropy on bfloat16 logits, left out where its logits do not fit"
)


class Full(NamedTuple):
    """A full softmax to time."""

    queries: int
    items: int
    width: int


class Sampled(NamedTuple):
    """A sampled softmax to time: `negatives` for each of `groups` runs of queries."""

    queries: int
    negatives: int
    groups: int
    width: int
    items: int = 100_000


class Table(NamedTuple):
    """A table to update: `lookups` of its rows by a power law, or evenly with `exponent` 0."""

    lookups: int
    rows: int
    width: int
    exponent: float = 1.05


FULL = (Full(16384, 3416, 128), Full(16384, 100_000, 128), Full(16384, 1_000_000, 128), Full(16384, 100_000, 512))
SAMPLED = (Sampled(25600, 256, 128, 64), Sampled(65536, 1024, 64, 256), Sampled(65536, 256, 64, 512))
TABLE = Table(1_050_000, 10_000_000, 128)
POSITIONS = Table(65536, 4096, 512, 0.0)


def bench_loss(json: Path | None = None, *, rounds: int = 20) -> dict[str, Any]:
    """Time the losses and the table updates.

    Args:
        json: also write the result there.
        rounds: timed rounds of each setting.

    Raises:
        InputError: no CUDA device, or fewer than one round.
    """
    require_gpu("loss")
    before = clocks()
    result = {
        "benchmark": "softmax losses and table updates on a GPU",
        "method": METHOD,
        "rounds": rounds,
        "full": [_measure(one, full_providers(one), rounds, _work(one.items, one)) for one in FULL],
        "sampled": [_measure(one, sampled_providers(one), rounds, _work(one.negatives + 1, one)) for one in SAMPLED],
        "update": [_measure(TABLE, update_providers(TABLE), rounds)],
        "gradient": [_measure(one, gradient_providers(one), rounds) for one in (TABLE, POSITIONS)],
        "clocks": {"before": before, "after": clocks()},
        "environment": environment(),
    }
    if json is not None:
        write_result(json, result)
    return result


def full_providers(one: Full) -> dict[str, Call]:
    """Return what makes one full softmax and both gradients."""
    queries, items, targets = _problem(one.queries, one.items, one.width)
    step = partial(_step, queries, items)
    found: dict[str, Call] = {
        "default": step(lambda q, x: full_softmax_loss(q, x, targets)),
        "triton": step(lambda q, x: full_softmax_loss(q, x, targets, path="triton")),
        "triton-blocked": step(lambda q, x: full_softmax_loss(q, x, targets, path="triton-blocked")),
        "blocked": step(lambda q, x: full_softmax_loss(q, x, targets, path="blocked")),
    }
    logits = one.queries * one.items
    if 12 * logits < torch.cuda.get_device_properties(0).total_memory:  # bfloat16, float32 and both gradients
        compiled = torch.compile(_cross_entropy, dynamic=True)
        found["compiled cross_entropy"] = step(lambda q, x: compiled(q, x, targets))
    return found


def sampled_providers(one: Sampled) -> dict[str, Call]:
    """Return what makes one sampled softmax and both gradients, the items' dense or sparse."""
    queries, items, targets = _problem(one.queries, one.items, one.width)
    negatives = torch.randint(one.items, (one.groups, one.negatives), device="cuda")
    found: dict[str, Call] = {}
    for path in ("triton", "blocked"):
        for sparse in (False, True):
            loss: Any = partial(sampled_softmax_loss, path=path, sparse=sparse)
            name = f"{path}, sparse gradient" if sparse else path
            found[name] = _step(queries, items, lambda q, x, loss=loss: loss(q, x, targets, negatives))  # type: ignore[misc]
    return found


def update_providers(one: Table) -> dict[str, Call]:
    """Return what looks rows up, makes their gradient and moves the table."""
    ids, grads = _lookups(one)

    def rowwise(make: Callable[[Tensor], RowwiseOptimiser], table: Tensor) -> Call:
        optimiser = make(table)

        def step() -> None:
            embedding_lookup(table, ids, sparse=True).backward(grads)  # type: ignore[no-untyped-call]
            optimiser.step_gradient()

        return step

    def torchs(optimiser: torch.optim.Optimizer, table: Tensor, sparse: bool) -> Call:
        def step() -> None:
            functional.embedding(ids, table, sparse=sparse).backward(grads)  # type: ignore[no-untyped-call]
            optimiser.step()
            table.grad = None

        return step

    # One table serves all: its values do not matter to the time.
    table = torch.randn(one.rows, one.width, device="cuda").requires_grad_()
    return {
        "row-wise AdaGrad": rowwise(RowwiseAdagrad, table),
        "row-wise AdamW": rowwise(RowwiseAdamW, table),
        "torch sparse gradient, SparseAdam": torchs(torch.optim.SparseAdam([table]), table, True),
        "torch dense gradient, fused AdamW": torchs(torch.optim.AdamW([table], fused=True), table, False),
    }


def gradient_providers(one: Table) -> dict[str, Call]:
    """Return what looks rows up and makes the dense gradient of the table."""
    ids, grads = _lookups(one)
    table = torch.randn(one.rows, one.width, device="cuda").requires_grad_()

    def gradient(lookup: Callable[[Tensor, Tensor], Tensor]) -> Call:
        def step() -> None:
            lookup(table, ids).backward(grads)  # type: ignore[no-untyped-call]
            table.grad = None

        return step

    return {"ours": gradient(embedding_lookup), "torch": gradient(lambda t, i: functional.embedding(i, t))}


def _measure(setting: Any, providers: dict[str, Call], rounds: int, work: float | None = None) -> dict[str, Any]:
    """Return times and peaks of `providers`, with the rate of `work` operations where there is one."""
    peaks = {name: _peak(call) for name, call in providers.items()}
    rows: dict[str, dict[str, float]] = {}
    for name, timing in device_interleaved(providers, rounds=rounds).items():
        rate = {} if work is None else {"tflops": round(timing.rate(work) / 1e12, 1)}
        rows[name] = {**timing.as_dict(), **rate, "peak_mib": round(peaks[name] / MIB, 1)}
    providers.clear()
    gc.collect()
    torch.cuda.empty_cache()
    return {**setting._asdict(), "providers": rows}


def _peak(call: Call) -> int:
    """Return the bytes that a call holds at most beyond what is there before it; the first call compiles."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _work(candidates: int, one: Full | Sampled) -> float:
    return 6.0 * one.queries * candidates * one.width


def _problem(n: int, num_items: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator("cuda").manual_seed(n + num_items + width)
    queries = torch.randn(n, width, device="cuda", generator=source)
    items = torch.randn(num_items, width, device="cuda", generator=source) * (3 / width**0.5)
    return queries, items, torch.randint(num_items, (n,), device="cuda", generator=source)


def _step(queries: Tensor, items: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """Return a call that leaves no gradient behind, so that each of them counts in its own peak."""
    queries, items = queries.detach().requires_grad_(), items.detach().requires_grad_()

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            value = loss(queries, items)
        value.backward()  # type: ignore[no-untyped-call]
        queries.grad = items.grad = None

    return step


def _cross_entropy(queries: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy((queries @ items.T).float(), targets)


def _lookups(one: Table) -> tuple[Tensor, Tensor]:
    """Return ids whose popularity follows the power law, shuffled over the table, and gradients of their rows."""
    random = np.random.default_rng(0)
    cumulative = np.cumsum(np.arange(1, one.rows + 1, dtype=np.float64) ** -one.exponent)
    ranks = np.searchsorted(cumulative, random.random(one.lookups) * cumulative[-1])
    ids = torch.from_numpy(random.permutation(one.rows)[ranks]).cuda()
    return ids, torch.randn(one.lookups, one.width, device="cuda")
