"""What a relative bias costs on a GPU: in the kernels, on the padded path, and against no bias at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longview.bench.device import device_interleaved
from longview.ops.attention import MaskSpec, RelativeBias, semi_local_attention
from longview.ops.jagged import offsets_from_lengths

SHAPES = ((128, 200, 4, 32), (16, 1024, 4, 64), (8, 4096, 4, 64))  # sequences, tokens, heads, dim
DENSE_LIMIT = 1024  # tokens; beyond it the padded path holds tens of GB of scores
BUCKETS = 64


def bias_rows(rounds: int) -> list[dict[str, Any]]:
    """Return milliseconds of forward and backward with a position and a time bias, by path, for each shape."""
    return [_measure(*shape, rounds) for shape in SHAPES]


def _measure(sequences: int, length: int, heads: int, dim: int, rounds: int) -> dict[str, Any]:
    total = sequences * length
    offsets = offsets_from_lengths(torch.full((sequences,), length)).cuda()
    q, k, v = (
        torch.randn(total, heads, dim, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    d_out = torch.randn_like(v)
    position, time = (
        torch.zeros(heads, size, device="cuda", requires_grad=True) for size in (min(length, 4096), BUCKETS)
    )
    stamps = torch.randint(0, 10**4, (total,), device="cuda").view(sequences, length).cumsum(1).flatten()

    def pass_of(backend: Any, biased: bool) -> Callable[[], object]:
        def call() -> tuple[Tensor, ...]:
            bias = RelativeBias(position, time, stamps) if biased else None
            out = semi_local_attention(
                q, k, v, offsets, MaskSpec.causal(),
                scale_length=float(length), bias=bias, max_length=length, backend=backend,
            )  # fmt: skip
            return torch.autograd.grad(out, [q, k, v, *((position, time) if biased else ())], d_out)

        return call

    calls = {"kernels, with bias": pass_of("triton", True), "kernels, without": pass_of("triton", False)}
    if length <= DENSE_LIMIT:
        calls["padded path, with bias"] = pass_of("dense", True)
    timings = device_interleaved(calls, rounds=rounds)
    mine = timings["kernels, with bias"].median
    return {
        "sequences": sequences,
        "length": length,
        "heads": heads,
        "dim": dim,
        "forward and backward": {name: timing.as_dict() for name, timing in timings.items()},
        "times_faster": {name: round(t.median / mine, 2) for name, t in timings.items() if "kernels, with" not in name},
    }
