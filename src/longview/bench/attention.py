"""How fast attention is on this machine, beside what one would use instead, in one interleaved run.

Useful work counts the visible pairs exactly: 4 x heads x dimension operations a pair forward, 2.5 times that
backward. The rate of a plain float32 matrix product, timed in the same rounds, is what the machine could do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longview.bench.record import write_result
from longview.bench.timing import Timing, interleaved
from longview.evaluation.environment import environment
from longview.ops.attention import MaskSpec, semi_local_attention
from longview.ops.attention.tiles import visited
from longview.ops.jagged import from_padded, offsets_from_lengths, to_padded

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

MATMUL = 2048
BUFFERS = 3  # sets of inputs taken in turn, so that none is still in the cache
DENSE_LIMIT = 4096  # tokens; beyond it the dense reference would need several GB
METHOD = (
    "providers take turns within one run; medians with 10th and 90th percentile; N(0,1) float32 inputs; "
    "GFLOP/s of useful work: 4 * heads * dim * visible pairs forward, 3.5 times that forward and backward; "
    "of_matmul: that rate over the rate of a 2048^3 float32 matrix product timed in the same rounds; "
    "SDPA is softmax attention over the causal mask: another function, the usual alternative"
)


@dataclass(frozen=True)
class Setting:
    """One shape to time: jagged `lengths`, and the mask of the model."""

    name: str
    lengths: tuple[int, ...]
    heads: int
    dim: int
    mask: MaskSpec


def default_settings(lengths: tuple[int, ...] = (1024, 4096, 8192)) -> list[Setting]:
    """Return the quoted settings: long semi-local histories, and a training batch of short ones."""
    mask = MaskSpec.ultra_prefix(256, 128)
    long = [Setting(f"one history of {length}", (length,), 4, 64, mask) for length in lengths]
    short = tuple(torch.randint(20, 201, (128,), generator=torch.Generator().manual_seed(0)).tolist())
    return [
        *long,
        Setting("128 histories of 20 to 200, 2 heads of 32", short, 2, 32, MaskSpec.causal()),
        Setting("128 histories of 20 to 200, 1 head of 64", short, 1, 64, MaskSpec.causal()),
    ]


def bench_attention(
    json: Path | None = None, *, rounds: int = 20, settings: list[Setting] | None = None
) -> dict[str, Any]:
    """Time the CPU path against the dense reference, the padded path and softmax SDPA, forward and backward.

    Args:
        json: also write the result there.
        rounds: timed rounds of each setting; the median of fewer than 20 says little.
        settings: what to time; None = `default_settings()`.

    Raises:
        InputError: fewer than one round.
    """
    result = {
        "benchmark": "attention",
        "method": METHOD,
        "rounds": rounds,
        "settings": [_measure(s, rounds) for s in (default_settings() if settings is None else settings)],
        "environment": environment(),
    }
    if json is not None:
        write_result(json, result)
    return result


def _measure(setting: Setting, rounds: int) -> dict[str, Any]:
    offsets = offsets_from_lengths(torch.tensor(setting.lengths))
    shape = (int(offsets[-1]), setting.heads, setting.dim)
    sets = [tuple(torch.randn(shape).requires_grad_() for _ in range(3)) for _ in range(BUFFERS)]
    d_out = torch.randn(shape)
    providers = _providers(setting, offsets)
    a, b = torch.randn(MATMUL, MATMUL), torch.randn(MATMUL, MATMUL)
    calls: dict[str, Callable[[], object]] = {"matmul": lambda: a @ b}
    for name, attention in providers.items():
        calls[f"{name} | forward"] = _forward(attention, sets)
        calls[f"{name} | forward and backward"] = _both(attention, sets, d_out)
    timings = interleaved(calls, rounds=rounds)
    matmul = timings["matmul"].rate(2 * MATMUL**3) / 1e9
    pairs = sum(setting.mask.pairs(0, n, 0) for n in setting.lengths)
    causal_pairs = sum(MaskSpec.causal().pairs(0, n, 0) for n in setting.lengths)
    table = {}
    for name in providers:
        work = 4 * setting.heads * setting.dim * (causal_pairs if "causal" in name else pairs)
        table[name] = {
            "forward": _row(timings[f"{name} | forward"], work, matmul),
            "forward and backward": _row(timings[f"{name} | forward and backward"], 3.5 * work, matmul),
        }
    return {
        "name": setting.name,
        "tokens": shape[0],
        "sequences": len(setting.lengths),
        "heads": setting.heads,
        "dim": setting.dim,
        "mask": {"local_window": setting.mask.local_window, "global_size": setting.mask.global_size},
        "visible_pairs": pairs,
        "visited_over_visible": round(sum(visited(setting.mask, 0, n, 0) for n in setting.lengths) / pairs, 4),
        "relative_error": _error(providers, sets[0]),
        "matmul": {**timings["matmul"].as_dict(), "gflops": round(matmul, 1)},
        "providers": table,
        "times_faster": _ratios(timings, providers),
    }


def _providers(setting: Setting, offsets: Tensor) -> dict[str, Attention]:
    scale_length = float(max(setting.lengths))

    def ours(mask: MaskSpec, backend: Any) -> Attention:
        return lambda q, k, v: semi_local_attention(q, k, v, offsets, mask, scale_length=scale_length, backend=backend)

    found = {"ours": ours(setting.mask, "cpu")}
    if setting.mask != MaskSpec.causal():
        found["ours, causal"] = ours(MaskSpec.causal(), "cpu")
    if max(setting.lengths) <= DENSE_LIMIT:
        found["reference, dense"] = ours(setting.mask, "reference")
    if len(setting.lengths) > 1:
        found["padded, dense"] = ours(setting.mask, "dense")
    found["SDPA, causal softmax"] = _sdpa(offsets, max(setting.lengths))
    return found


def _sdpa(offsets: Tensor, longest: int) -> Attention:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q_BHLD, k_BHLD, v_BHLD = (to_padded(x, offsets, longest).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, is_causal=True)
        return from_padded(out.transpose(1, 2), offsets, q.shape[0])

    return attend


def _forward(attention: Attention, sets: list[tuple[Tensor, ...]]) -> Callable[[], object]:
    turns = cycle(sets)

    def call() -> Tensor:
        q, k, v = next(turns)
        with torch.no_grad():
            return attention(q, k, v)

    return call


def _both(attention: Attention, sets: list[tuple[Tensor, ...]], d_out: Tensor) -> Callable[[], object]:
    turns = cycle(sets)

    def call() -> object:
        inputs = next(turns)
        return torch.autograd.grad(attention(*inputs), inputs, d_out)

    return call


def _error(providers: dict[str, Attention], inputs: tuple[Tensor, ...]) -> float | None:
    """Return how far ours is from the reference, as a share of its norm; what is fast must also be right."""
    if "reference, dense" not in providers:
        return None
    with torch.no_grad():
        expected = providers["reference, dense"](*inputs)
        return float((providers["ours"](*inputs) - expected).norm() / expected.norm())


def _row(timing: Timing, work: float, matmul: float) -> dict[str, float]:
    gflops = timing.rate(work) / 1e9
    return {**timing.as_dict(), "gflops": round(gflops, 2), "of_matmul": round(gflops / matmul, 4)}


def _ratios(timings: dict[str, Timing], providers: dict[str, Attention]) -> dict[str, dict[str, float]]:
    """Return how many times the median of `ours` fits into that of each other provider."""
    return {
        name: {
            pas: round(timings[f"{name} | {pas}"].median / timings[f"ours | {pas}"].median, 2)
            for pas in ("forward", "forward and backward")
        }
        for name in providers
        if name != "ours"
    }
