"""Timing on a GPU: interleaved rounds as in `timing.py`, measured by the device's own events."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import torch

from longview.bench.timing import Timing, shuffled_rounds
from longview.errors import InputError
from longview.ops.graphs import launched, recorded


def require_gpu(what: str) -> torch.device:
    """Return the GPU that `what` is measured on.

    Raises:
        InputError: there is none.
    """
    if not torch.cuda.is_available():
        raise InputError(f"bench {what} times GPU kernels, and this machine has no CUDA GPU; see longview doctor")
    return torch.device("cuda")


def device_interleaved(
    providers: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warm_up: int = 3,
    lead: int = 0,
    calls: int = 1,
) -> dict[str, Timing]:
    """Let every provider have its turn once a round, in an order of its own; return seconds of a call on the device.

    A turn is `lead` calls that are not timed and `calls` that are. The host runs ahead of the device, so that a
    provider's launches are not part of its time unless it waits for them. Where it does, as with short calls, what the
    host last did counts: a single call finds caches full of the provider before it, the calls of a training run or of
    a long turn find their own. `warm_up` rounds, where kernels are compiled, are not counted.

    Raises:
        InputError: fewer than one round.
    """
    found = device_turns(providers, rounds=rounds, warm_up=warm_up, lead=lead, calls=calls)
    return {name: Timing.of(spent) for name, spent in found.items()}


def device_turns(
    providers: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warm_up: int = 3,
    lead: int = 0,
    calls: int = 1,
) -> dict[str, list[float]]:
    """Return the seconds of a call of each provider in every round; see `device_interleaved`."""
    # An event is made when it is first recorded, which can take the host longer than a launch.
    events = {name: [(_event(), _event()) for _ in range(rounds)] for name in providers}
    spare = _event(), _event()
    for turn, names in shuffled_rounds(providers, rounds, warm_up):
        if turn <= 0:
            torch.cuda.synchronize()
        for name in names:
            call, (begin, end) = providers[name], events[name][turn] if turn >= 0 else spare
            for _ in range(lead):
                call()
            begin.record()
            for _ in range(calls):
                call()
            end.record()
    torch.cuda.synchronize()
    return {name: [a.elapsed_time(b) / 1e3 / calls for a, b in pairs] for name, pairs in events.items()}


def launches(call: Callable[[], object], calls: int = 3) -> int:
    """Return how many kernels, copies and fills the device runs in a call, which was called before."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as recorded:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    return sum("CUDA" in str(event.device_type) for event in recorded.events() or ()) // calls


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Return a call as a CUDA graph, whose replays cost no launches. Each replay drops the same elements."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    for _ in range(3):
        launched(call, stream)
    graph, _ = recorded(call, stream, refusal="a timed call cannot be captured as a CUDA graph ({reason})")
    return graph


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def clocks() -> dict[str, str]:
    """Return clocks, power and temperature as the driver reports them now, or nothing where it does not."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    fields = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
    query = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    found = done.stdout.strip().splitlines()
    return dict(zip(fields, found[0].split(", "), strict=False)) if done.returncode == 0 and found else {}
