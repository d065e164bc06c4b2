"""How fast attention is on a GPU, beside Meta's kernel, SDPA, FlexAttention and a compiled dense form, in one run.

Useful work counts the visible pairs exactly: 4 x heads x dimension operations a pair forward, 2.5 times that backward.
A large matrix product and a copy, timed in the same run, are what the GPU could do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longview.bench import attention_providers as providers
from longview.bench.attention_bias import bias_rows
from longview.bench.attention_providers import Inputs, Pass
from longview.bench.device import captured, clocks, device_interleaved, require_gpu
from longview.bench.record import write_result
from longview.bench.timing import Timing
from longview.evaluation.environment import environment
from longview.ops.attention import MaskSpec, newest_rows_attention
from longview.ops.attention.reference import reference_attention
from longview.ops.jagged import offsets_from_lengths

TOKENS, HEADS, BUFFERS = 65536, 4, 3
WORK = {"forward": 1.0, "backward": 2.5}
KINDS = tuple(WORK)
METHOD = (
    "providers take turns within one run; CUDA events, medians with 10th and 90th percentile; N(0,1) bfloat16 inputs, "
    "three sets in turn; TFLOP/s of useful work: 4 * heads * dim * visible pairs forward, 2.5 times that backward; "
    "our outputs hold NaN before the first run; SDPA and FlexAttention are softmax: another function"
)


@dataclass(frozen=True)
class Setting:
    """One shape to time: sequences of `lengths` tokens, and the mask."""

    name: str
    lengths: tuple[int, ...]
    dim: int
    mask: MaskSpec
    beside: tuple[str, ...] = field(default=())


def equal(length: int, dim: int, window: int = 0, prefix: int = 0, *beside: str) -> Setting:
    mask = MaskSpec.ultra_prefix(window, prefix) if window else MaskSpec.causal()
    kind = f"prefix {window}/{prefix}" if window else "full causal"
    return Setting(f"{kind}, {length} tokens, dim {dim}", (length,) * (TOKENS // length), dim, mask, beside)


def default_settings() -> list[Setting]:
    """Return the quoted settings."""
    causal, prefix = ("meta", "sdpa"), ("flex",)
    found = [equal(1024, 128, 0, 0, "sdpa", "dense"), *(equal(n, 128, 0, 0, *causal) for n in (4096, 16384))]
    found += [equal(1024, 128, 256, 128, "dense"), equal(4096, 128, 256, 128), equal(4096, 128, 1024, 512)]
    found += [equal(16384, 128, 256, 128, *prefix), equal(16384, 128, 1024, 512, *prefix)]
    found += [equal(n, 128, 512, 256) for n in (8192, 16384, 65536)] + [equal(8192, 64, 512, 256), equal(8192, 64)]
    return found + jagged_settings()


def jagged_settings() -> list[Setting]:
    """Return batches of unequal lengths, 65,536 tokens each."""
    source = torch.Generator().manual_seed(0)
    drawn = torch.randint(256, 8192, (64,), generator=source)
    skewed = torch.randn(256, generator=source).mul(0.9).add(7).exp().clamp(16, 16384).int()
    giant = torch.tensor([32768] + [512] * 64)
    mask = MaskSpec.ultra_prefix(512, 256)
    sets = (("uniform", drawn), ("lognormal", skewed), ("one giant and many short", giant))
    return [Setting(f"prefix 512/256, {name} lengths, dim 128", _filled(lengths), 128, mask) for name, lengths in sets]


def bench_attention_gpu(
    json: Path | None = None,
    *,
    rounds: int = 20,
    settings: list[Setting] | None = None,
    peer_checkout: Path | None = None,
) -> dict[str, Any]:
    """Time the kernels beside what else there is, forward and backward.

    Args:
        json: also write the result there.
        rounds: timed rounds of each setting.
        settings: what to time; None = `default_settings()`.
        peer_checkout: a checkout of Meta's generative-recommenders, whose Triton kernel is then timed beside.

    Raises:
        InputError: no GPU, fewer than one round, or a checkout without the kernel.
    """
    require_gpu("attention")
    result: dict[str, Any] = {"benchmark": "attention on a GPU", "method": METHOD, "rounds": rounds}
    result |= {"environment": environment(), "clocks": {"before": clocks()}, "ceilings": _ceilings(rounds)}
    result["settings"] = []
    for setting in default_settings() if settings is None else settings:
        result["settings"].append(_measure(setting, rounds, peer_checkout))
        _keep(json, result)
    for name, measure in (
        ("candidates", _candidates),
        ("relative bias", bias_rows),
        ("window against full causal", _windows),
    ):
        result[name] = measure(rounds)
        _keep(json, result)
    result["clocks"]["after"] = clocks()
    _keep(json, result)
    return result


def _keep(json: Path | None, result: dict[str, Any]) -> None:
    """Write what is measured so far, whatever comes."""
    if json is not None:
        write_result(json, result)


def _inputs(lengths: tuple[int, ...], dim: int) -> Inputs:
    offsets = offsets_from_lengths(torch.tensor(lengths)).cuda()
    shape = (sum(lengths), HEADS, dim)

    def normal() -> Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    return Inputs(offsets, max(lengths), tuple((normal(), normal(), normal(), normal()) for _ in range(BUFFERS)))


def _measure(setting: Setting, rounds: int, checkout: Path | None) -> dict[str, Any]:
    inputs = _inputs(setting.lengths, setting.dim)
    passes: dict[str, tuple[Pass, Pass]] = {"ours": providers.ours(inputs, setting.mask)}
    others: dict[str, tuple[str, Callable[[], providers.Attention]]] = {
        "sdpa": ("SDPA, causal softmax", lambda: providers.sdpa_causal(inputs)),
        "flex": ("FlexAttention, softmax", lambda: providers.flex(inputs, setting.mask)),
        "dense": ("compiled dense", lambda: providers.compiled_dense(inputs, setting.mask)),
    }
    if checkout is not None:
        where = checkout
        others["meta"] = ("Meta's Triton HSTU", lambda: providers.meta_hstu(inputs, setting.mask, where))
    for key in setting.beside:
        if key in others:
            name, make = others[key]
            passes[name] = providers.differentiable(inputs, make())
    timings = device_interleaved(
        {f"{name} | {kind}": call for name, two in passes.items() for kind, call in zip(KINDS, two, strict=True)},
        rounds=rounds,
    )
    pairs = sum(setting.mask.pairs(0, n, 0) for n in setting.lengths)
    work = 4 * HEADS * setting.dim * pairs
    table = {
        name: {
            kind: _row(timings[f"{name} | {kind}"], work * times) for kind, times in zip(KINDS, (1, 2.5), strict=True)
        }
        for name in passes
    }
    torch.cuda.empty_cache()
    return {
        "name": setting.name,
        "tokens": sum(setting.lengths),
        "sequences": len(setting.lengths),
        "longest": max(setting.lengths),
        "heads": HEADS,
        "dim": setting.dim,
        "mask": {"local_window": setting.mask.local_window, "global_size": setting.mask.global_size},
        "visible_pairs": pairs,
        "relative_error": _error(setting, inputs),
        "providers": table,
    }


def _error(setting: Setting, inputs: Inputs) -> float | None:
    """Return how far the output of the first sequence is from float64, as a share of its norm."""
    length = setting.lengths[0]
    if length > 4096:
        return None
    q, k, v, _ = (x[:length] for x in inputs.sets[0])
    single = Inputs(torch.tensor([0, length], device="cuda"), inputs.longest, ((q, k, v, v),))
    found = providers.ours(single, setting.mask)[0]()
    expected = reference_attention(
        q.double(), k.double(), v.double(), single.offsets, setting.mask,
        alpha=q.shape[2] ** -0.5, scale_length=float(inputs.longest),
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return float((found.double() - expected).norm() / expected.norm())


def _windows(rounds: int) -> list[dict[str, Any]]:
    """Time every window at every length against our own full causal attention."""
    rows = []
    for length in (256, 1024, 4096, 16384):
        inputs = _inputs((length,) * (TOKENS // length), 128)
        masks = {f"{w}/{p}": MaskSpec.ultra_prefix(w, p) for w, p in ((64, 32), (256, 128), (512, 256), (1024, 512))}
        calls: dict[str, Pass] = {}
        for name, mask in {"full causal": MaskSpec.causal(), **masks}.items():
            forward, backward = providers.ours(inputs, mask)
            calls |= {f"{name} | forward": forward, f"{name} | backward": backward}
        timings = device_interleaved(calls, rounds=rounds)
        for name in masks:
            row: dict[str, Any] = {"length": length, "window/prefix": name}
            for kind in KINDS:
                mine, full = timings[f"{name} | {kind}"], timings[f"full causal | {kind}"]
                row[kind] = {**mine.as_dict(), "full_causal_ms": full.as_dict()["median_ms"]}
                row[kind]["times_faster"] = round(full.median / mine.median, 3)
            rows.append(row)
    return rows


def _candidates(rounds: int, users: int = 8, candidates: int = 1024, history: int = 8192) -> dict[str, Any]:
    """Time scoring candidates of several users against cached keys and values, as one captured graph."""
    total = history + candidates
    k = torch.randn(users * total, HEADS, 128, device="cuda", dtype=torch.bfloat16)
    v, q = torch.randn_like(k), torch.randn(users * candidates, HEADS, 128, device="cuda", dtype=torch.bfloat16)
    offsets = torch.arange(0, users * total + 1, total, device="cuda")
    asked = torch.arange(0, users * candidates + 1, candidates, device="cuda")
    targets = torch.full((users,), candidates, device="cuda")
    mask = MaskSpec(local_window=512, global_size=256, target_scope="semi_local")

    def score() -> Tensor:
        return newest_rows_attention(
            q, k, v, asked, offsets, mask, scale_length=float(history), target_lengths=targets, backend="triton"
        )

    repeats = 20
    graph = captured(lambda: [score() for _ in range(repeats)])
    timing = device_interleaved({"score": graph.replay}, rounds=rounds)["score"]
    return {
        "users": users,
        "candidates": candidates,
        "history": history,
        "keys a candidate sees": 768,
        "microseconds": round(1e6 * timing.median / repeats, 2),
        "method": f"a captured graph of {repeats} calls of the public function, its time divided by {repeats}",
    }


def _ceilings(rounds: int) -> dict[str, float]:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    big = torch.empty(1 << 31, device="cuda", dtype=torch.uint8)
    copy = torch.empty_like(big)
    timings = device_interleaved({"matmul": lambda: a @ b, "copy": lambda: copy.copy_(big)}, rounds=rounds)
    return {
        "matrix product, TFLOP/s": round(timings["matmul"].rate(2 * 8192**3) / 1e12, 1),
        "copy, TB/s read and written": round(timings["copy"].rate(2 * big.numel()) / 1e12, 2),
    }


def _row(timing: Timing, work: float) -> dict[str, float]:
    return {**timing.as_dict(), "tflops": round(timing.rate(work) / 1e12, 1)}


def _filled(lengths: Tensor) -> tuple[int, ...]:
    """Return as many of `lengths` as make TOKENS, the last one cut."""
    total = lengths.cumsum(0)
    kept = lengths[total <= TOKENS].tolist()
    rest = TOKENS - sum(kept)
    return (*kept, rest) if rest else tuple(kept)
