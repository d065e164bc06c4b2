"""Block sizes of the attention kernels, measured on this GPU for one shape: opt-in, as nothing is tuned at run time."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from longview.bench.device import device_interleaved, require_gpu
from longview.bench.record import write_result
from longview.errors import InputError
from longview.evaluation.environment import environment
from longview.ops.attention import MaskSpec

Kernel = Literal["forward", "rows", "keys"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
TOKENS = 65_536
TOLD = 20  # candidates between two lines of progress
METHOD = (
    f"bfloat16 N(0,1) inputs, {TOKENS:,} tokens in sequences of equal length; backward on through SiLU, as in the "
    "fused layer; every candidate that compiles and fits the GPU takes turns with the others; medians of CUDA events"
)


@dataclass(frozen=True)
class Shape:
    """What block sizes are wanted for: heads of `head_dim`, a window, prefix keys, and tokens of a sequence."""

    head_dim: int = 128
    heads: int = 4
    local_window: int = 256
    global_size: int = 128
    length: int = 4096

    def check(self) -> None:
        """Raise InputError where the kernels have no such shape."""
        if not 8 <= self.head_dim <= 256 or self.heads < 1:
            raise InputError(f"{self.heads} heads of {self.head_dim}: expected at least one, of 8 to 256")
        if not 1 <= self.length <= TOKENS:
            raise InputError(f"length {self.length}: expected 1 to {TOKENS}")
        if self.local_window < 0 or self.global_size < 0:
            raise InputError(f"window {self.local_window} and prefix {self.global_size}: expected 0 or more")


def tune_attention(
    shape: Shape,
    json: Path | None = None,
    *,
    rounds: int = 10,
    jobs: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return the fastest blocks of each kernel for `shape`, every candidate's time, and the setting that uses them.

    Args:
        shape: of the model and its histories.
        json: also write the result there, after every kernel.
        rounds: timed rounds.
        jobs: candidates compiled at a time, each in a process with some memory of the GPU; None = one a processor, up
            to 16.
        progress: told what is measured.

    Raises:
        InputError: no GPU, or a shape the kernels do not have.
    """
    shape.check()
    require_gpu("tune")
    result: dict[str, Any] = {"benchmark": "block sizes of attention", "method": METHOD, "rounds": rounds}
    result |= {"shape": asdict(shape), "environment": environment(), "kernels": {}, "set": []}
    problem = _problem(shape)
    _compile_all(problem, jobs or min(16, os.cpu_count() or 1), progress)
    for kernel in KERNELS:
        rows = _measured(kernel, problem, rounds, progress)
        result["kernels"][kernel] = rows
        result["set"].append(f"model.attention.blocks.{kernel}={rows[0]['blocks']}")
        if json is not None:
            write_result(json, result)
    return result


def _problem(shape: Shape) -> dict[str, Any]:
    from longview.ops.attention.triton_launch import Call, batch_of

    torch.manual_seed(0)
    length = shape.length
    total = TOKENS // length * length
    offsets = torch.arange(0, total + 1, length, device="cuda")
    mask = MaskSpec.ultra_prefix(shape.local_window, shape.global_size) if shape.local_window else MaskSpec.causal()
    inputs = {
        name: torch.randn(total, shape.heads, shape.head_dim, device="cuda", dtype=torch.bfloat16)
        for name in ("q", "k", "v", "d_out")
    }
    call = Call(batch_of(offsets, total, mask, None, None), shape.head_dim**-0.5, float(length))
    return {**inputs, "call": call, "shape": shape}


def _measured(
    kernel: Kernel, problem: dict[str, Any], rounds: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return a row for each candidate that runs, the fastest first; the shipped one is among them."""
    shipped, found = _found(kernel, problem)
    calls = {}
    for number, blocks in enumerate(found):
        run = _run(kernel, blocks, problem)
        if _runs(run):
            calls[number] = run
    progress(f"{kernel}: measuring {len(calls)} of {len(found)} candidates, the ones that fit")
    timings = device_interleaved({str(number): call for number, call in calls.items()}, rounds=rounds)
    rows = [
        {
            "blocks": list(astuple(found[number])),
            "shipped": found[number] == shipped,
            **timings[str(number)].as_dict(),
        }
        for number in calls
    ]
    return sorted(rows, key=lambda row: float(row["median_ms"]))


def _found(kernel: Kernel, problem: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Return the shipped blocks, and all that are worth measuring."""
    from longview.ops.attention.triton_tuning import blocks_for, candidates
    from longview.ops.kernels import padded_dim

    padded, batch = padded_dim(problem["shape"].head_dim), problem["call"].batch
    shipped = blocks_for(kernel, batch.mask, padded, 2, average=batch.shape.total / batch.shape.batch)
    return shipped, list(dict.fromkeys([shipped, *candidates(kernel, padded)]))


def _run(kernel: Kernel, blocks: Any, problem: dict[str, Any]) -> Callable[[], object]:
    """Return the pass of `kernel` with `blocks`, backward as the fused layer runs it: on through SiLU."""
    from longview.ops.attention.triton_launch import (
        Sloped,
        attention_forward_into,
        backward_keys_into,
        backward_rows_into,
    )
    from longview.ops.attention.triton_tuning import ChosenBlocks

    q, k, v, d_out = (problem[name] for name in ("q", "k", "v", "d_out"))
    call = replace(problem["call"], chosen=replace(ChosenBlocks(), **{kernel: blocks}))
    if kernel == "forward":
        return partial(attention_forward_into, torch.empty_like(v), q, k, v, call)
    rows = len(call.batch.rows(blocks.rows)) if kernel == "rows" else _key_rows(call, blocks)
    columns = torch.zeros(rows, q.shape[1] * q.shape[2], device=q.device)
    if kernel == "rows":
        return partial(backward_rows_into, torch.empty_like(q), d_out, q, k, v, call, Sloped((q,), (columns,)))
    sloped = Sloped((k, v), (columns, torch.zeros_like(columns)))
    return partial(backward_keys_into, torch.empty_like(k), torch.empty_like(v), d_out, q, k, v, call, sloped)


def _key_rows(call: Any, blocks: Any) -> int:
    """Return the rows of partial sums that the kernel leaves."""
    from longview.ops.attention.triton_launch import SUM_ROWS

    work = call.batch.keys(blocks.keys, blocks.rows)
    of_sums: int = len(work.sums) * (blocks.keys // SUM_ROWS) if work.slots else 0
    return len(work.items) + of_sums


def _runs(run: Callable[[], object]) -> bool:
    """Run once; what does not fit this GPU is no candidate."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        run()
    except (OutOfResources, PTXASError, CompilationError):
        return False
    return True


def _compile_all(problem: dict[str, Any], jobs: int, progress: Callable[[str], None]) -> None:
    """Have every candidate compiled, `jobs` at a time: their binaries stay in Triton's cache on disk."""
    work = [(problem["shape"], kernel, blocks) for kernel in KERNELS for blocks in _found(kernel, problem)[1]]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(_compile, work), start=1):
            if done % TOLD == 0 or done == len(work):
                progress(f"compiled {done} of {len(work)} candidates")


_small: dict[Shape, dict[str, Any]] = {}  # of a process that compiles


def _compile(work: tuple[Shape, Kernel, Any]) -> None:
    shape, kernel, blocks = work
    if shape not in _small:
        _small[shape] = _problem(shape)
    _runs(_run(kernel, blocks, _small[shape]))
