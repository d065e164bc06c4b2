"""What 8-bit products save of a whole HSTU layer: forward alone and with backward, which stays in bfloat16."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from longview.bench.device import captured, device_interleaved
from longview.bench.layer import LENGTH, Problem, Shape, attend_once, fused_form
from longview.ops.hstu_layer import LayerParameters
from longview.ops.hstu_layer.reference import reference_layer

WIDTHS, TOKENS, HEAD = (512, 1024, 2048), (16384, 65536), 128
BASE = "bfloat16"
FORMS: dict[str, dict[str, Any]] = {
    BASE: {},
    "FP8": {"fp8_projection": True, "fp8_output": True},
    "FP8 projection": {"fp8_projection": True},
    "FP8 output": {"fp8_output": True},
}
LAYERS_METHOD = (
    f"heads of {HEAD} columns, sequences of {LENGTH} tokens, semi-local attention, dropout 0.2, bfloat16 parameters "
    "and stream; each form as a CUDA graph; weights are quantised in every forward pass; the projection before and "
    "after SiLU is kept for backward; times_faster: median of bfloat16 over this median; relative_error: of the output "
    "without dropout on one sequence, against float32, over what the layer adds to its input"
)


def bench_layers(
    rounds: int, *, widths: tuple[int, ...] = WIDTHS, tokens: tuple[int, ...] = TOKENS
) -> list[dict[str, Any]]:
    """Time fused layers with 8-bit products beside bfloat16 ones.

    Args:
        rounds: timed rounds of each comparison.
        widths: of the layers, multiples of `HEAD`.
        tokens: of a batch, multiples of `LENGTH`.
    """
    found = []
    for width, total in itertools.product(widths, tokens):
        found.append(_layer(Shape(width, width // HEAD, total), rounds))
        torch.cuda.empty_cache()
    return found


def _layer(shape: Shape, rounds: int) -> dict[str, Any]:
    problem = Problem.of(shape)
    with torch.no_grad():
        forms = _forms(problem, shape)
        forward = _timed({name: partial(form, *problem.leaves) for name, form in forms.items()}, rounds)
    forms = _forms(problem, shape)
    both = _timed({name: partial(_step, form, problem) for name, form in forms.items()}, rounds)
    return {
        **shape._asdict(),
        "forward": forward,
        "forward_and_backward": both,
        "relative_error": _errors(problem),
    }


def _forms(problem: Problem, shape: Shape) -> dict[str, Callable[..., Tensor]]:
    """Return the layer with each choice of 8-bit products, as functions of `Problem.leaves`."""
    settings = replace(problem.settings, recompute_uvqk=False)
    # Offsets of its own for each: what attention makes of them would else be captured with the first form alone.
    return {
        name: fused_form(replace(settings, **eight), torch.arange(0, shape.tokens + 1, LENGTH, device="cuda"))
        for name, eight in FORMS.items()
    }


def _step(form: Callable[..., Tensor], problem: Problem) -> object:
    return torch.autograd.grad(form(*problem.leaves), problem.leaves, problem.d_out)


def _timed(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    graphs = {name: captured(call) for name, call in calls.items()}
    timings = device_interleaved({name: graph.replay for name, graph in graphs.items()}, rounds=rounds)
    return {
        name: {**timing.as_dict(), "times_faster": round(timings[BASE].median / timing.median, 3)}
        for name, timing in timings.items()
    }


@torch.no_grad()
def _errors(problem: Problem) -> dict[str, float]:
    offsets, z = torch.tensor([0, LENGTH], device="cuda"), problem.z.detach()[:LENGTH]
    exact = reference_layer(
        z.float(), LayerParameters(*(x.float() for x in problem.parameters.tensors())), problem.settings, attend_once
    )
    added = (exact - z.float()).norm()
    found = {}
    for name, eight in FORMS.items():
        form = fused_form(replace(problem.settings, **eight), offsets, training=False)
        found[name] = float((form(z, *problem.parameters.tensors()).float() - exact).norm() / added)
    return found
