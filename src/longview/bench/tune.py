"""Block sizes of the attention kernels, measured on this GPU for one shape: opt-in, as nothing is tuned at run time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from longview.bench.device import device_interleaved, require_gpu
from longview.bench.record import write_result
from longview.errors import InputError
from longview.evaluation.environment import environment
from longview.ops.attention import MaskSpec

TOKENS = 65_536
METHOD = (
    f"bfloat16 N(0,1) inputs, {TOKENS:,} tokens in sequences of equal length; every candidate that compiles and fits "
    "the GPU takes turns with the others; medians of CUDA events"
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
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return the fastest blocks of each kernel for `shape`, every candidate's time, and the setting that uses them.

    Args:
        shape: of the model and its histories.
        json: also write the result there, after every kernel.
        rounds: timed rounds.
        progress: told what is measured.

    Raises:
        InputError: no GPU, or a shape the kernels do not have.
    """
    shape.check()
    require_gpu("tune")
    result: dict[str, Any] = {"benchmark": "block sizes of attention", "method": METHOD, "rounds": rounds}
    result |= {"shape": asdict(shape), "environment": environment(), "kernels": {}, "set": []}
    problem = _problem(shape)
    for kernel in ("forward", "rows", "keys"):
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
    q, k, v, d_out = (
        torch.randn(total, shape.heads, shape.head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(4)
    )
    call = Call(batch_of(offsets, total, mask, None, None), shape.head_dim**-0.5, float(length))
    return {"q": q, "k": k, "v": v, "d_out": d_out, "call": call, "dim": shape.head_dim}


def _measured(
    kernel: Any, problem: dict[str, Any], rounds: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return a row for each candidate that runs, the fastest first; the shipped one is among them."""
    from longview.ops.attention.triton_tuning import blocks_for, candidates
    from longview.ops.kernels import padded_dim

    padded, batch = padded_dim(problem["dim"]), problem["call"].batch
    average = batch.shape.total / batch.shape.batch
    shipped = blocks_for(kernel, batch.mask, padded, 2, average=average)
    calls = dict(_runnable(kernel, list(dict.fromkeys([shipped, *candidates(kernel, padded)])), problem, progress))
    timings = device_interleaved({str(number): call for number, (_, call) in calls.items()}, rounds=rounds)
    rows = [
        {
            "blocks": [b.rows, b.keys, b.warps, b.stages, b.joined],
            "shipped": b == shipped,
            **timings[str(number)].as_dict(),
        }
        for number, (b, _) in calls.items()
    ]
    return sorted(rows, key=lambda row: float(row["median_ms"]))


def _runnable(
    kernel: Any, found: list[Any], problem: dict[str, Any], progress: Callable[[str], None]
) -> Iterator[tuple[int, tuple[Any, Callable[[], object]]]]:
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    from longview.ops.attention.triton_launch import attention_forward_into, backward_keys_into, backward_rows_into
    from longview.ops.attention.triton_tuning import ChosenBlocks

    q, k, v, d_out = (problem[name] for name in ("q", "k", "v", "d_out"))
    d_q, d_k, d_v, out = (torch.empty_like(x) for x in (q, k, v, v))
    for number, blocks in enumerate(found):
        call = replace(problem["call"], chosen=replace(ChosenBlocks(), **{kernel: blocks}))
        runs: dict[str, Callable[[], object]] = {
            "forward": partial(attention_forward_into, out, q, k, v, call),
            "rows": partial(backward_rows_into, d_q, d_out, q, k, v, call),
            "keys": partial(backward_keys_into, d_k, d_v, d_out, q, k, v, call),
        }
        progress(f"{kernel}: candidate {number + 1} of {len(found)}")
        try:
            runs[kernel]()
        except (OutOfResources, PTXASError, CompilationError):
            continue  # what does not fit this GPU is no candidate
        yield number, (blocks, runs[kernel])
