"""The losses over batch × memory, forward and backward, beside plain torch and pytorch-metric-learning, in one run.

`extra_mib` is what a call needs beyond its inputs at most, the batch's gradient included, and on a CPU also the buffers
that a loss of ours leaves to the next call.
"""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import Any

import torch

from longview.bench.device import captured, clocks, device_interleaved, require_gpu
from longview.bench.memory_peers import PEER, PEER_PAIRS, Call, bench_loss, peer_providers, torch_providers, why_no_peer
from longview.bench.memory_problem import Problem, Setting, problem_of
from longview.bench.record import write_result
from longview.bench.timing import interleaved
from longview.errors import InputError
from longview.evaluation.environment import environment
from longview.ops.memory_loss import PAIR_LOSSES, PairLoss, memory_loss
from longview.ops.memory_loss.buffers import forget_buffers

MIB = 1 << 20
LEAD = 3  # calls of a turn of several that are not timed
METHOD = (
    "forward and backward, gradient to the batch; unit vectors, four of a class in a batch, classes of 5.26 rows in "
    "the memory; providers take turns within one run; medians; extra_mib: largest sum of allocations within a call, "
    "which on a CPU begins without the buffers that ours keeps between calls; on a GPU median_ms is launch by launch, "
    "the host's time included where it is the longer, and graph_ms the replay of a captured graph, the device's time "
    f"alone. With calls above 1, a provider's turn is {LEAD} calls that are not timed and then so many that are, and "
    "single_ms is the median of one call right after another provider's, which finds the host's caches full of that. "
    "Chunked torch is the supervised contrastive loss with logits of a chunk of the batch at a time, backward "
    "after each; its products are in the dtype of the memory. On a CPU, compiled contrastive and so on are each loss "
    "in such chunks, compiled. pytorch-metric-learning is its CrossBatchMemory in float32, which also enqueues the "
    "batch"
)
GPU = (
    Setting(256, 59_551, 512, "bfloat16", calls=20),  # here the host takes longer than the device
    Setting(1024, 262_144, 128, "bfloat16"),
    Setting(4096, 1_048_576, 128, "bfloat16"),
)
CPU = (Setting(64, 59_551, 128, "float32"), Setting(256, 59_551, 128, "float32"), Setting(256, 59_551, 128, "bfloat16"))
VIEWS = ("info-nce", "contrastive")  # the losses that are also timed with moment matching and norms


def bench_memory_loss(
    json: Path | None = None, *, device: str = "cpu", rounds: int = 20, peer: bool = False
) -> dict[str, Any]:
    """Time every loss of `ops.memory_loss`, the three views of the memory, and what one would write instead.

    Args:
        json: also write the result there, after each setting.
        device: `cpu` or `cuda`.
        rounds: timed rounds of each setting.
        peer: also time pytorch-metric-learning, where it is installed; otherwise the result says why not.

    Raises:
        InputError: no CUDA device, another device, or fewer than one round.
    """
    if device not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: expected cpu or cuda")
    if device == "cuda":
        require_gpu("memory-loss")
    result: dict[str, Any] = {
        "benchmark": f"losses over batch × memory, {device}",
        "method": METHOD,
        "rounds": rounds,
        "settings": [],
        "clocks": {"before": clocks()} if device == "cuda" else {},
        "environment": environment(),
    }
    for setting in GPU if device == "cuda" else CPU:
        result["settings"].append(_measure(setting, torch.device(device), rounds, peer))
        if json is not None:
            write_result(json, result)
    if device == "cuda":
        result["clocks"]["after"] = clocks()
    return result


def _measure(setting: Setting, device: torch.device, rounds: int, peer: bool) -> dict[str, Any]:
    problem = problem_of(setting, device)
    providers = {**our_providers(problem), **torch_providers(problem)}
    skipped: dict[str, str] = {}
    if peer:
        reason = why_no_peer(setting)
        if reason is None:
            providers |= peer_providers(problem)
        else:
            skipped[PEER] = reason
    peaks = {name: _peak(call, device) for name, call in providers.items()}
    several = setting.calls > 1  # of the settings for a GPU
    take_turns = device_interleaved if device.type == "cuda" else interleaved
    if several:
        take_turns = partial(device_interleaved, lead=LEAD, calls=setting.calls)
    rows = {
        name: {**timing.as_dict(), "extra_mib": round(peaks[name] / MIB, 1)}
        for name, timing in take_turns(providers, rounds=rounds).items()
    }
    if several:
        for name, timing in device_interleaved(providers, rounds=rounds).items():
            rows[name]["single_ms"] = timing.as_dict()["median_ms"]
    if device.type == "cuda":
        # The peer waits for the device; large logits would be held once more.
        large = setting.batch * setting.rows > PEER_PAIRS
        others = (PEER, "chunked torch") if large else (PEER,)
        graphs = {name: captured(call) for name, call in providers.items() if not name.startswith(others)}
        for name, timing in device_interleaved({n: g.replay for n, g in graphs.items()}, rounds=rounds).items():
            rows[name]["graph_ms"] = timing.as_dict()["median_ms"]
        del graphs
    del providers
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {**setting._asdict(), "providers": rows, "skipped": skipped}


def our_providers(problem: Problem) -> dict[str, Call]:
    """Return every loss on the memory as it is, and some on the memory as moment matching sees it."""
    found: dict[str, Call] = {}
    for name in PAIR_LOSSES:
        step = partial(_our_step, problem, bench_loss(name))
        found[name] = step()
        if name in VIEWS:
            found[f"{name}, moment matching"] = step(affine=problem.affine)
            found[f"{name}, moment matching, norms"] = step(affine=problem.affine, renormalise=True)
    return found


def _our_step(problem: Problem, loss: PairLoss, **options: Any) -> Call:
    embeddings = problem.embeddings.detach().requires_grad_()

    def step() -> None:
        value = memory_loss(
            embeddings, problem.labels, problem.reference, problem.reference_labels, loss=loss, **options
        )
        value.backward()  # type: ignore[no-untyped-call]
        embeddings.grad = None

    return step


def _peak(call: Call, device: torch.device) -> int:
    """Return the bytes that a call holds at most beyond what is there before it; the first call compiles."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    forget_buffers()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
