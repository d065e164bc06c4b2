"""How fast the fused HSTU layer is on a GPU: its two products with all that belongs to them, and the whole layer.

A bare matrix product of cuBLAS, timed in the same rounds, is what the products could cost at best; the same written
in torch, eager and compiled, is what one would use instead. All three forms of the layer call our attention kernels,
so that they differ in everything but attention.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longview.bench.device import clocks, device_interleaved, require_gpu
from longview.bench.record import write_result
from longview.bench.timing import Timing
from longview.evaluation.environment import environment
from longview.ops.attention import MaskSpec, semi_local_attention
from longview.ops.dropout.counter import draw_seed
from longview.ops.hstu_layer import LayerParameters, LayerSettings, fused_layer
from longview.ops.hstu_layer.reference import reference_layer

Call = Callable[[], object]
MIB = 1 << 20
LENGTH, WINDOW, PREFIX = 4096, 256, 128
BARE = "bare matrix product (cuBLAS)"
METHOD = (
    "bfloat16 parameters and stream, dropout 0.2; providers take turns within one run; CUDA events, medians with 10th "
    "and 90th percentile; projection: layer norm, product, bias and SiLU, our statistics and folding included; output: "
    "norm of the attention's result, gate, dropout, product, bias and residual; of_bare_product: median of the bare "
    f"matrix product over this median; layer: sequences of {LENGTH} tokens, semi-local attention {WINDOW}/{PREFIX} by "
    "our kernels in every form; kept_for_backward_mib: beyond the layer's input and output; relative_error: of the "
    "layer's output without dropout on one sequence, against float32"
)


class Shape(NamedTuple):
    """A layer to time; heads have width / heads columns, tokens are a multiple of `LENGTH`."""

    width: int
    heads: int
    tokens: int = 131072


SHAPES = (Shape(512, 4), Shape(1024, 8))


@dataclass(frozen=True)
class Problem:
    """A layer, its input and the gradient of its output."""

    z: Tensor
    parameters: LayerParameters
    settings: LayerSettings
    d_out: Tensor

    @classmethod
    def of(cls, shape: Shape) -> Problem:
        """Return a random one of `shape`, the same every time."""
        torch.manual_seed(0)
        width, head = shape.width, shape.width // shape.heads

        def normal(*sizes: int, scale: float = 1.0, around: float = 0.0) -> Tensor:
            drawn = torch.randn(*sizes, device="cuda") * scale + around
            return drawn.bfloat16().requires_grad_()

        weights = normal(4 * width, width, scale=width**-0.5), normal(4 * width, scale=0.1)
        norm, norm_a = ((normal(width, scale=0.1, around=1.0), normal(width, scale=0.1)) for _ in range(2))
        out = normal(width, width, scale=width**-0.5), normal(width, scale=0.1)
        parameters = LayerParameters(*norm, *weights, *norm_a, *out)
        z, d_out = normal(shape.tokens, width, around=0.5), normal(shape.tokens, width).detach()
        return cls(z, parameters, LayerSettings(shape.heads, head, head, dropout=0.2), d_out)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.z, *self.parameters.tensors())


def bench_layer(json: Path | None = None, *, rounds: int = 20, shapes: tuple[Shape, ...] = SHAPES) -> dict[str, Any]:
    """Time the fused layer and its parts, forward and backward, and measure what it keeps for backward.

    Args:
        json: also write the result there, after every shape.
        rounds: timed rounds of each comparison.
        shapes: the layers to time.

    Raises:
        InputError: no CUDA device, or fewer than one round.
    """
    require_gpu("layer")
    result: dict[str, Any] = {"benchmark": "fused HSTU layer on a GPU", "method": METHOD, "rounds": rounds}
    result |= {"environment": environment(), "clocks": {"before": clocks()}, "shapes": []}
    for shape in shapes:
        result["shapes"].append(_measure(shape, rounds))
        result["clocks"]["after"] = clocks()
        if json is not None:  # what is measured is kept, whatever comes
            write_result(json, result)
    return result


def _measure(shape: Shape, rounds: int) -> dict[str, Any]:
    problem = Problem.of(shape)
    product = 2 * shape.tokens * shape.width**2
    with torch.no_grad():
        projection = device_interleaved(_projections(problem), rounds=rounds)
        output = device_interleaved(_outputs(problem), rounds=rounds)
        torch.cuda.empty_cache()
        forms = _forms(problem, shape)
        forward = device_interleaved(
            {name: partial(form, *problem.leaves) for name, form in forms.items()}, rounds=rounds
        )
    both = device_interleaved({name: _step(form, problem) for name, form in forms.items()}, rounds=rounds)
    kept = {name: _kept(form, problem) for name, form in forms.items()}
    return {
        **shape._asdict(),
        "projection": _beside_bare(projection, 4 * product),
        "output": _beside_bare(output, product),
        "layer_forward": _beside_ours(forward),
        "layer_forward_and_backward": _beside_ours(both),
        "kept_for_backward_mib": {name: round(size / MIB, 1) for name, size in kept.items()},
        "recompute": _recompute(problem, shape, rounds),
        "relative_error": _errors(problem),
    }


def _torch_projection(z: Tensor, p: LayerParameters, s: LayerSettings) -> Tensor:
    x = F.layer_norm(z, z.shape[1:], p.norm_weight, p.norm_bias, s.epsilon)
    return F.silu(F.linear(x, p.uvqk_weight, p.uvqk_bias))


def _torch_output(z: Tensor, a: Tensor, u: Tensor, p: LayerParameters, s: LayerSettings) -> Tensor:
    normed = F.layer_norm(a, a.shape[1:], p.attention_norm_weight, p.attention_norm_bias, s.epsilon)
    return z + F.linear(F.dropout(normed * u, s.dropout), p.output_weight, p.output_bias)


def _projections(problem: Problem) -> dict[str, Call]:
    from longview.ops.hstu_layer.triton_project import fold, project

    z, p, s = problem.z.detach(), problem.parameters, problem.settings
    compiled = torch.compile(_torch_projection)

    def ours() -> object:
        folded = fold(p.uvqk_weight, p.uvqk_bias, p.norm_weight, p.norm_bias, z.dtype)
        return project(z, folded, s.activated, s.epsilon)

    return {
        "ours": ours,
        BARE: lambda: F.linear(z, p.uvqk_weight),
        "torch, eager": lambda: _torch_projection(z, p, s),
        "torch, compiled": lambda: compiled(z, p, s),
    }


def _outputs(problem: Problem) -> dict[str, Call]:
    from longview.ops.hstu_layer.triton_output import Gate, gated_output

    z, p, s = problem.z.detach(), problem.parameters, problem.settings
    a, u = problem.d_out, _torch_projection(z, p, s)[:, : s.gate]
    gate = Gate(p.attention_norm_weight, p.attention_norm_bias, s.groups, s.epsilon, s.dropout, draw_seed("cuda"))
    compiled = torch.compile(_torch_output)

    return {
        "ours": lambda: gated_output(z, a, u, gate, p.output_weight, p.output_bias),
        BARE: lambda: F.linear(a, p.output_weight),
        "torch, eager": lambda: _torch_output(z, a, u, p, s),
        "torch, compiled": lambda: compiled(z, a, u, p, s),
    }


def _forms(problem: Problem, shape: Shape) -> dict[str, Callable[..., Tensor]]:
    """Return the layer as a function of `problem.leaves`, three ways."""
    offsets = torch.arange(0, shape.tokens + 1, LENGTH, device="cuda")
    mask, s = MaskSpec.ultra_prefix(WINDOW, PREFIX), problem.settings

    def torch_layer(z: Tensor, *tensors: Tensor) -> Tensor:
        p = LayerParameters(*tensors)
        u, *vqk = torch.split(_torch_projection(z, p, s), s.sizes, dim=1)
        v, q, k = (x.view(len(x), s.heads, -1) for x in vqk)
        a = semi_local_attention(q, k, v, offsets, mask, scale_length=LENGTH)
        return _torch_output(z, a.flatten(1), u, p, s)

    kept = replace(s, recompute_normed=True, recompute_uvqk=False, recompute_gated=True)
    return {
        "ours": fused_form(kept, offsets),
        "torch, eager": torch_layer,
        "torch, compiled": torch.compile(torch_layer),
    }


def fused_form(settings: LayerSettings, offsets: Tensor, training: bool = True) -> Callable[..., Tensor]:
    """Return the fused layer as a function of `Problem.leaves`."""
    from longview.ops.attention.triton_attention import LayerAttention

    mask, alpha = MaskSpec.ultra_prefix(WINDOW, PREFIX), settings.d_qk**-0.5

    def layer(z: Tensor, *tensors: Tensor) -> Tensor:
        attention = LayerAttention.of(offsets, len(z), mask, alpha, float(LENGTH))
        return fused_layer(z, LayerParameters(*tensors), settings, attention, training)

    return layer


def _step(form: Callable[..., Tensor], problem: Problem) -> Call:
    return lambda: torch.autograd.grad(form(*problem.leaves), problem.leaves, problem.d_out)


def _kept(form: Callable[..., Tensor], problem: Problem) -> int:
    """Return the bytes that one forward pass keeps for backward, beyond its input and output."""
    before = torch.cuda.memory_allocated()
    out = form(*problem.leaves)
    return torch.cuda.memory_allocated() - before - out.nbytes


def _recompute(problem: Problem, shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Time and measure every choice of what backward computes again, the most memory first."""
    offsets = torch.arange(0, shape.tokens + 1, LENGTH, device="cuda")
    forms = {}
    for chosen in itertools.product((False, True), repeat=3):
        names = [name for name, on in zip(("normed", "uvqk", "gated"), chosen, strict=True) if on]
        normed, uvqk, gated = chosen
        settings = replace(problem.settings, recompute_normed=normed, recompute_uvqk=uvqk, recompute_gated=gated)
        forms[", ".join(names) or "nothing"] = fused_form(settings, offsets)
    timings = device_interleaved({name: _step(form, problem) for name, form in forms.items()}, rounds=rounds)
    kept = {name: _kept(form, problem) for name, form in forms.items()}
    rows = [
        {
            "recomputed": name,
            "kept_for_backward_mib": round(kept[name] / MIB, 1),
            "forward_and_backward": timing.as_dict(),
            "slower_than_keeping_all": round(timing.median / timings["nothing"].median - 1, 4),
            "less_kept_than_keeping_all": round(1 - kept[name] / kept["nothing"], 4),
        }
        for name, timing in timings.items()
    ]
    return sorted(rows, key=lambda row: -float(row["kept_for_backward_mib"]))


def attend_once(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention of one sequence of `LENGTH` tokens."""
    offsets = torch.tensor([0, LENGTH], device=q.device)
    return semi_local_attention(q, k, v, offsets, MaskSpec.ultra_prefix(WINDOW, PREFIX), scale_length=LENGTH)


@torch.no_grad()
def _errors(problem: Problem) -> dict[str, float]:
    """Return ||found - exact|| / ||exact|| on one sequence; what is fast must also be right."""
    offsets, z = torch.tensor([0, LENGTH], device="cuda"), problem.z.detach()[:LENGTH]
    exact_parameters = LayerParameters(*(x.float() for x in problem.parameters.tensors()))
    exact = reference_layer(z.float(), exact_parameters, problem.settings, attend_once)
    found = {
        "ours": fused_form(problem.settings, offsets, training=False)(z, *problem.parameters.tensors()),
        "torch, eager": reference_layer(z, problem.parameters, problem.settings, attend_once),
    }
    return {name: float((x.float() - exact).norm() / exact.norm()) for name, x in found.items()}


def _beside_bare(timings: Mapping[str, Timing], work: float) -> dict[str, dict[str, float]]:
    bare = timings[BARE].median
    return {
        name: {
            **timing.as_dict(),
            "tflops": round(timing.rate(work) / 1e12, 1),
            "of_bare_product": round(bare / timing.median, 4),
        }
        for name, timing in timings.items()
    }


def _beside_ours(timings: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    ours = timings["ours"].median
    return {
        name: {**timing.as_dict(), "times_slower_than_ours": round(timing.median / ours, 3)}
        for name, timing in timings.items()
    }
