"""The same training step with the kernels of the package off, and which family of work each of its kernels serves.

Attention is the padded dense path with its core compiled, layers and losses go operation by operation, and steps are
launched one by one: what one has on a GPU without kernels. Names of kernels do not tell the products of attention from
those of a layer; a kernel belongs to what launched it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from longview.bench.device import device_interleaved
from longview.ops.attention.dense import RANGE
from longview.ops.kernels import without_kernels

REST = "element-wise and other"
COMPILED = ("CompiledFunction", "Torch-Compiled Region")  # the core of dense attention: nothing else is compiled
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
STEPS = 2  # profiled steps
NO_MEMORY = ("out of memory", "ALLOC_FAILED")  # torch's own word, and that of cuBLAS

Step = Callable[[], object]


def before(make: Callable[[int], Step], tokens: int, least: int, rounds: int) -> dict[str, Any]:
    """Time and profile steps without kernels; where memory forbids a step of `tokens`, one of half as many.

    Args:
        make: returns a step of so many tokens.
        tokens: of a step, where they fit.
        least: tokens of the smallest step to try.
        rounds: timed steps.
    """
    with without_kernels("this is the step without them"):
        while True:
            try:
                return _measured(make(tokens), tokens, rounds)
            except RuntimeError as error:
                if not any(words in str(error) for words in NO_MEMORY):
                    raise
                if tokens <= least:
                    return {"tokens": tokens, "failed": "out of memory"}
            tokens //= 2  # outside the handler: the error keeps what the step had made alive
            free_memory()


def free_memory() -> None:
    """Give memory that nothing uses any more back to the device."""
    gc.collect()
    torch.cuda.empty_cache()


def _measured(step: Step, tokens: int, rounds: int) -> dict[str, Any]:
    torch.cuda.reset_peak_memory_stats()
    timing = device_interleaved({"before": step}, rounds=rounds, warm_up=2)["before"]
    spent, kernels = _profiled(step)
    busy, milliseconds = sum(spent.values()), timing.median * 1e3
    whole = max(busy, milliseconds)
    return {
        "tokens": tokens,
        **timing.as_dict(),
        "tokens_per_second": round(timing.rate(tokens)),
        "peak_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20),
        "kernels": kernels,
        "share_of_step": {
            **{family: round(spent[family] / whole, 4) for family in sorted(spent)},
            "idle": round(1 - busy / whole, 4),
        },
    }


def _profiled(step: Step) -> tuple[dict[str, float], int]:
    """Return the milliseconds that kernels of each family take in a step, and how many kernels there are."""
    torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities, acc_events=True) as recorded:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    events = list(recorded.events() or ())
    spent = by_family(events, lambda event: sum(kernel.duration for kernel in event.kernels))
    kernels = [e for e in events if "CUDA" in str(e.device_type) and not e.is_user_annotation]
    unknown = sum(e.time_range.elapsed_us() for e in kernels) - sum(spent.values())
    spent[REST] = spent.get(REST, 0.0) + max(0.0, unknown)
    return {family: time / STEPS / 1e3 for family, time in spent.items()}, len(kernels) // STEPS


def by_family(events: Iterable[FunctionEvent], time_of: Callable[[FunctionEvent], float]) -> dict[str, float]:
    """Return the time of all operations by what they are part of; a backward node is part of what its forward was.

    Args:
        events: of a profile with the CPU's activities, whole steps.
        time_of: what an operation itself took, in microseconds.
    """
    events = [event for event in events if "CPU" in str(event.device_type)]
    padding = {e.sequence_nr for e in events if e.sequence_nr >= 0 and any(x.name == RANGE for x in _lineage(e))}
    spent: dict[str, float] = {}
    for event in events:
        time = time_of(event)
        if time:
            family = _family(event, padding)
            spent[family] = spent.get(family, 0.0) + time
    return spent


def _lineage(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """Yield an operation and those it was called in, the innermost first."""
    at: FunctionEvent | None = event
    while at is not None:
        yield at
        at = at.cpu_parent


def _family(event: FunctionEvent, padding: set[int]) -> str:
    names = [one.name for one in _lineage(event)]
    if any(name.startswith("Optimizer.step") for name in names):
        return "optimiser"
    if any("SampledSoftmaxLoss" in name for name in names):
        return REST if event.name == "aten::index_add_" else "loss"  # the gradient of the table, as with kernels
    nodes = (one for one in _lineage(event) if one.name.startswith("autograd::engine"))
    if RANGE in names or any(word in name for name in names for word in COMPILED):
        return "attention"
    if any(node.sequence_nr in padding for node in nodes):
        return "attention"
    return "products" if any(name in PRODUCTS for name in names) else REST
