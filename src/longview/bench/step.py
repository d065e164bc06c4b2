"""Whole training steps of a large model on a GPU: tokens a second, where the time goes, and what memory is kept.

Useful operations a token and layer: 6 (4 + 1) width^2 for the products (q, k, v, u and output, forward and backward),
and 3.5 times 4 x width x visible keys for attention; the loss adds 6 x width x negatives. Recomputation counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from longview.bench.device import captured, clocks, device_interleaved, require_gpu
from longview.bench.record import write_result
from longview.bench.step_before import before, free_memory
from longview.data.batches import JaggedBatch
from longview.errors import InputError, suggestion
from longview.evaluation.environment import environment
from longview.models.hstu import Layout
from longview.models.layer_config import AttentionConfig, LayerConfig
from longview.models.retriever import Retriever, RetrieverConfig
from longview.ops.attention import MaskSpec
from longview.ops.softmax_loss import sampled_softmax_loss
from longview.training.config import OptimiserConfig
from longview.training.optimiser import build_optimiser

TOKENS, WIDTH, LAYERS, HEADS, ITEMS, NEGATIVES, GROUPS = 65536, 512, 8, 4, 100_000, 256, 64
WINDOW, PREFIX = 256, 128
PARTS = ("steps", "before", "recompute")
BEFORE_ROUNDS = 5  # they are slow, and spread little
LARGEST = 40  # kernels that are listed by name
PEAK = 989e12  # dense bf16 operations a second in the data sheet of an H100 or H200, the usual denominator of MFU
FAMILIES = (
    ("attention", ("attention_forward", "attention_backward")),
    ("optimiser", ("multi_tensor_apply",)),
    ("loss", ("softmax", "full_", "sampled_", "negatives")),
    ("products", ("gemm", "nvjet", "cutlass", "splitkreduce", "project_", "output_")),
)
METHOD = (
    f"{LAYERS} layers, width {WIDTH}, {HEADS} heads, {TOKENS:,} tokens a step in sequences of equal length, bfloat16 "
    f"products and stream, sampled softmax ({NEGATIVES} negatives for each of {GROUPS} groups, {ITEMS:,} items), fused "
    "AdamW; each step as a captured CUDA graph (shapes are fixed) and launch by launch; providers take turns "
    "within one run; medians of CUDA events; MFU: useful operations over 989 TFLOP/s; before: the same step without "
    "the kernels of this package, launch by launch: padded dense attention, its core compiled; layers, loss and "
    "embedding operation by operation, fused AdamW; with half the tokens, and so on, where memory forbids more; "
    "times_faster_than_before: a token"
)


def bench_step(
    json: Path | None = None,
    *,
    rounds: int = 10,
    lengths: tuple[int, ...] = (1024, 4096, 16384),
    only: Sequence[str] = PARTS,
) -> Any:
    """Time training steps with full causal and with semi-local attention at several lengths, with kernels and without.

    Args:
        json: also write the result there, after every length.
        rounds: timed steps of each setting.
        lengths: tokens of a sequence.
        only: parts to measure, of `PARTS`.

    Raises:
        InputError: no GPU, fewer than one round, or an unknown part.
    """
    for name in only:
        if name not in PARTS:
            raise InputError(f"no part {name!r} to measure{suggestion(name, PARTS)}; known: {', '.join(PARTS)}")
    require_gpu("step")
    result: dict[str, Any] = {"benchmark": "training step on a GPU", "method": METHOD, "rounds": rounds, "steps": []}
    result |= {"before": [], "environment": environment()}
    for length in lengths:
        if "steps" in only:
            result["steps"] += _measure(length, rounds)
        if "before" in only:
            result["before"] += _without_kernels(length, min(rounds, BEFORE_ROUNDS), result["steps"])
        if json is not None:  # what is measured is kept, whatever comes
            write_result(json, result)
    result["recompute"] = _recompute(4096, rounds) if "recompute" in only else []
    result["clocks"] = clocks()
    if json is not None:
        write_result(json, result)
    return result


def _masks() -> dict[str, MaskSpec]:
    return {"full causal": MaskSpec.causal(), f"semi-local {WINDOW}/{PREFIX}": MaskSpec.ultra_prefix(WINDOW, PREFIX)}


def _without_kernels(length: int, rounds: int, after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measure the steps of `_measure` without kernels, and how much faster, a token, those `after` are."""
    rows = []
    for name, mask in _masks().items():
        free_memory()
        make = partial(_step, length, mask.local_window, mask.global_size, "none")
        row = {"length": length, "attention": name, **before(make, TOKENS, length, rounds)}
        ours = [one for one in after if (one["length"], one["attention"]) == (length, name)]
        if ours and "tokens_per_second" in row:
            row["times_faster_than_before"] = round(ours[0]["tokens_per_second"] / row["tokens_per_second"], 3)
        rows.append(row)
    free_memory()
    return rows


def _measure(length: int, rounds: int) -> list[dict[str, Any]]:
    masks = _masks()
    steps = {name: _step(length, mask.local_window, mask.global_size) for name, mask in masks.items()}
    graphs = {name: captured(step) for name, step in steps.items()}
    calls: dict[str, Callable[[], object]] = {f"{name} | launches": step for name, step in steps.items()}
    calls |= {f"{name} | graph": graph.replay for name, graph in graphs.items()}
    timings = device_interleaved(calls, rounds=rounds)
    full = timings["full causal | graph"].median
    rows = []
    for name, mask in masks.items():
        timing, work = timings[f"{name} | graph"], _useful(mask, length)
        rows.append(
            {
                "length": length,
                "attention": name,
                **timing.as_dict(),
                "launch_by_launch_ms": timings[f"{name} | launches"].as_dict()["median_ms"],
                "tokens_per_second": round(timing.rate(TOKENS)),
                "useful_teraflop": round(work / 1e12, 3),
                "mfu": round(timing.rate(work) / PEAK, 4),
                "times_faster_than_full": round(full / timing.median, 3),
                **_profile(graphs[name].replay),
            }
        )
    return rows


def _recompute(length: int, rounds: int) -> list[dict[str, Any]]:
    """Time and measure each setting of what backward computes again."""
    rows = []
    for name, window, prefix in (("full causal", 0, 0), (f"semi-local {WINDOW}/{PREFIX}", WINDOW, PREFIX)):
        kinds = ("none", "cheap", "most", "all")
        steps = {
            kind: _step(length, window, prefix, recompute=kind) for kind in kinds
        }  # a graph keeps none of it alive
        graphs = {kind: captured(step) for kind, step in steps.items()}
        timings = device_interleaved({kind: graph.replay for kind, graph in graphs.items()}, rounds=rounds)
        del graphs, steps
        kept = {kind: _kept(length, window, prefix, kind) for kind in kinds}
        for kind in kinds:
            rows.append(
                {
                    "attention": name,
                    "length": length,
                    "recompute": kind,
                    **timings[kind].as_dict(),
                    "slower_than_none": round(timings[kind].median / timings["none"].median - 1, 4),
                    "kept_for_backward_mib": round(kept[kind] / 2**20),
                    "less_kept_than_none": round(1 - kept[kind] / kept["none"], 4),
                }
            )
    return rows


def _model(length: int, window: int, prefix: int, recompute: Any) -> Retriever:
    torch.manual_seed(0)
    config = RetrieverConfig(
        width=WIDTH,
        layers=LAYERS,
        heads=HEADS,
        max_length=length,
        residual="product",
        layer=LayerConfig(scale_length=float(length), recompute=recompute),
        attention=AttentionConfig(local_window=window, global_size=prefix),
    )
    return config.build(ITEMS).cuda().train()


def _batch(length: int, tokens: int = TOKENS) -> JaggedBatch:
    items = torch.randint(ITEMS, (tokens,), device="cuda")
    offsets = torch.arange(0, tokens + 1, length, device="cuda")
    return JaggedBatch(items=items, offsets=offsets, targets=items.roll(-1))


def _step(
    length: int, window: int, prefix: int, recompute: str = "cheap", tokens: int = TOKENS
) -> Callable[[], object]:
    model, batch = _model(length, window, prefix, recompute), _batch(length, tokens)
    optimiser = build_optimiser(model, OptimiserConfig())
    for group in optimiser.param_groups:
        group["capturable"] = True
    negatives = torch.randint(ITEMS, (GROUPS, NEGATIVES), device="cuda")

    def step() -> None:
        _loss(model, batch, negatives).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def _loss(model: Retriever, batch: JaggedBatch, negatives: torch.Tensor) -> torch.Tensor:
    assert batch.targets is not None
    with torch.autocast("cuda", torch.bfloat16):
        return sampled_softmax_loss(model(batch), model.item_vectors(), batch.targets, negatives)


def _kept(length: int, window: int, prefix: int, recompute: str) -> int:
    """Return the bytes that the layers of one forward pass keep for backward, the stream between them included."""
    model, batch = _model(length, window, prefix, recompute), _batch(length)
    with torch.autocast("cuda", torch.bfloat16):
        x = model.stream(batch)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        out = model.stack(x, Layout(batch.offsets, batch.max_length))
        torch.cuda.synchronize()
        kept = torch.cuda.memory_allocated() - before
    del out
    return kept


def _useful(mask: MaskSpec, length: int) -> float:
    products = 6 * 5 * WIDTH**2 * TOKENS * LAYERS
    attention = 3.5 * 4 * WIDTH * mask.pairs(0, length, 0) * (TOKENS // length) * LAYERS
    return products + attention + 6 * WIDTH * (NEGATIVES + 1) * TOKENS


def _profile(step: Callable[[], object], steps: int = 3) -> dict[str, Any]:
    """Return the share of a few steps that each family of kernels takes and what is idle, and the largest kernels."""
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    kernels = [event for event in recorded.events() if "CUDA" in str(event.device_type)]
    whole = max(e.time_range.end for e in kernels) - min(e.time_range.start for e in kernels)
    families: dict[str, float] = {}
    names: dict[str, float] = {}
    for event in kernels:
        time, name = event.time_range.elapsed_us(), event.name.lower()
        family = next((f for f, words in FAMILIES if any(word in name for word in words)), "element-wise and other")
        families[family] = families.get(family, 0.0) + time
        names[event.name] = names.get(event.name, 0.0) + time
    shares = {family: round(time / whole, 4) for family, time in sorted(families.items())}
    largest = sorted(names, key=lambda name: -names[name])[:LARGEST]
    return {
        "kernels": len(kernels) // steps,
        "share_of_step": {**shares, "idle": round(max(0.0, 1 - sum(families.values()) / whole), 4)},
        "largest_kernels_ms": {name[:80]: round(names[name] / steps / 1e3, 3) for name in largest},
    }
