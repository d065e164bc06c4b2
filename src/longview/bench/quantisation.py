"""What fewer bits save on a GPU: FP8 products beside bfloat16 ones, lookups in INT4 and INT8 tables beside bfloat16.

A product is timed alone, operands quantised already, with bias and residual or SiLU; and with what precedes it in a
layer, where the norm or the gate writes 8-bit rows instead of 16-bit ones. Whole layers are in
`quantisation_layers.py`, tables in `quantisation_tables.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longview.bench.device import captured, clocks, device_interleaved, require_gpu
from longview.bench.quantisation_layers import LAYERS_METHOD, bench_layers
from longview.bench.quantisation_tables import TABLES_METHOD, bench_tables
from longview.bench.record import write_result
from longview.bench.timing import Timing
from longview.errors import InputError, suggestion
from longview.evaluation.environment import environment
from longview.ops.quantisation import (
    fp8_linear,
    gate_quantise,
    normalise_quantise,
    quantise_rows,
    reference,
    why_no_fp8,
)

Call = Callable[[], object]
FORMS = ("output", "projection")
PARTS = ("products", "where_it_pays", "layers", "tables")
ROWS, WIDTHS = 131072, (1024, 2048)
FEWER_ROWS, MORE_WIDTHS = (1024, 4096, 16384, 65536), (256, 512, 1024, 2048)
OURS, LIBRARY, FP8 = "bfloat16, ours", "bfloat16, cuBLAS", "FP8, ours"
METHOD = (
    "providers take turns within one run; CUDA events, medians with 10th and 90th percentile; products: bfloat16 in "
    "and out, row-wise scales, bias, and residual (output) or SiLU (projection) included, weights quantised before; "
    "with_what_precedes: from the attention's result through norm, gate and dropout 0.2 (output) or from the stream "
    "through layer norm (projection); where_it_pays: the same output product, as CUDA graphs, so that launches cost "
    "nothing; times_faster: median of the bfloat16 provider over this median; relative_error: "
    "norm of the difference over norm, against float64"
)


class Operands(NamedTuple):
    """A product (rows, inner) x (columns, inner)^T with all that surrounds it."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None

    @classmethod
    def of(cls, rows: int, inner: int, columns: int, residual: bool) -> Operands:
        generator = torch.Generator("cuda").manual_seed(0)

        def normal(*sizes: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*sizes, device="cuda", generator=generator) * scale).bfloat16()

        weight, bias = normal(columns, inner, scale=inner**-0.5), normal(columns, scale=0.1).float()
        return cls(normal(rows, inner), weight, bias, normal(rows, columns) if residual else None)


def bench_quantisation(
    json: Path | None = None,
    *,
    rounds: int = 20,
    rows: int = ROWS,
    table_rows: int = 10_000_000,
    only: Sequence[str] = PARTS,
) -> dict[str, Any]:
    """Time FP8 products, layers and quantised lookups beside their bfloat16 forms, and measure errors and sizes.

    Args:
        json: also write the result there, after every part.
        rounds: timed rounds of each comparison.
        rows: of the products.
        table_rows: of each embedding table; 10 million rows of 512 take 10 GB in bfloat16.
        only: parts to measure, of `PARTS`.

    Raises:
        InputError: no CUDA device, one without FP8, fewer than one round, or no such part.
    """
    for name in only:
        if name not in PARTS:
            raise InputError(f"bench quantisation has no part {name!r}{suggestion(name, PARTS)}: {', '.join(PARTS)}")
    device = require_gpu("quantisation")
    reason = why_no_fp8(device, max(WIDTHS))
    if reason is not None:
        raise InputError(f"bench quantisation: {reason}")
    result: dict[str, Any] = {
        "benchmark": "quantisation on a GPU",
        "method": f"{METHOD}; layers: {LAYERS_METHOD}; tables: {TABLES_METHOD}",
        "rounds": rounds,
    }
    result |= {"environment": environment(), "clocks": {"before": clocks()}}
    parts: dict[str, Call] = {
        "products": lambda: [_product(rows, width, form, rounds) for width in WIDTHS for form in FORMS],
        "where_it_pays": lambda: _where_it_pays(rounds),
        "layers": lambda: bench_layers(rounds),
        "tables": lambda: bench_tables(table_rows, rounds),
    }
    for name in only:
        result[name] = parts[name]()
        torch.cuda.empty_cache()
        result["clocks"]["after"] = clocks()
        if json is not None:  # what is measured is kept, whatever comes
            write_result(json, result)
    return result


@torch.no_grad()
def _product(rows: int, width: int, form: str, rounds: int) -> dict[str, Any]:
    output = form == "output"
    operands = Operands.of(rows, width, width if output else 4 * width, output)
    alone = device_interleaved(_outputs(operands) if output else _projections(operands), rounds=rounds)
    preceded = device_interleaved(_gated_outputs(operands) if output else _normed_projections(operands), rounds=rounds)
    work = 2 * operands.x.numel() * len(operands.weight)
    return {
        "product": form,
        "rows": rows,
        "inner": width,
        "columns": len(operands.weight),
        "alone": _beside(alone, work),
        "with_what_precedes": _beside(preceded, work),
        "relative_error": _errors(operands),
    }


def _outputs(o: Operands) -> dict[str, Call]:
    from longview.ops.hstu_layer.triton_output import output

    assert o.residual is not None
    x, w, residual = quantise_rows(o.x), quantise_rows(o.weight), o.residual
    return {
        OURS: lambda: output(residual, o.x, o.weight, o.bias),
        LIBRARY: lambda: torch.addmm(residual, o.x, o.weight.T),
        "FP8, torch._scaled_mm and an addition": lambda: residual + _scaled_mm(x, w),
        FP8: lambda: fp8_linear(*x, *w, o.bias, residual),
    }


def _projections(o: Operands) -> dict[str, Call]:
    from longview.ops.hstu_layer.triton_project import Folded, project

    x, w, columns = quantise_rows(o.x), quantise_rows(o.weight), len(o.weight)
    statistics = torch.zeros(len(o.x), device="cuda"), torch.ones(len(o.x), device="cuda")
    folded = Folded(o.weight, o.weight.float().sum(1), o.bias)
    bias = o.bias.bfloat16()
    return {
        OURS: lambda: project(o.x, folded, columns, 1e-6, statistics=statistics),
        LIBRARY: lambda: F.silu(F.linear(o.x, o.weight, bias), inplace=True),
        "FP8, torch._scaled_mm and SiLU": lambda: F.silu(_scaled_mm(x, w), inplace=True),
        FP8: lambda: fp8_linear(*x, *w, o.bias, activated=columns),
    }


def _gated_outputs(o: Operands) -> dict[str, Call]:
    from longview.ops.hstu_layer.triton_output import Gate, gated_output

    assert o.residual is not None
    residual, w, width = o.residual, quantise_rows(o.weight), o.x.shape[1]
    gamma, beta = torch.ones(width, device="cuda"), torch.zeros(width, device="cuda")
    seed = torch.ones(1, dtype=torch.int64, device="cuda")
    gate = Gate(gamma, beta, 1, 1e-6, 0.2, seed)

    def quantised() -> Tensor:
        gated = gate_quantise(o.x, residual, gamma, beta, rate=0.2, seed=seed)
        return fp8_linear(gated.values, gated.scale, *w, o.bias, residual)

    return {
        OURS: lambda: gated_output(residual, o.x, residual, gate, o.weight, o.bias)[0],
        FP8: quantised,
    }


def _normed_projections(o: Operands) -> dict[str, Call]:
    from longview.ops.hstu_layer.triton_project import fold, project

    w, (columns, width) = quantise_rows(o.weight), o.weight.shape
    gamma, beta = torch.ones(width, device="cuda"), torch.zeros(width, device="cuda")
    folded = fold(o.weight, o.bias, gamma, beta, torch.bfloat16)

    def quantised() -> Tensor:
        normed = normalise_quantise(o.x, gamma, beta)
        return fp8_linear(normed.values, normed.scale, *w, o.bias, activated=columns)

    return {OURS: lambda: project(o.x, folded, columns, 1e-6), FP8: quantised}


def _scaled_mm(x: tuple[Tensor, Tensor], w: tuple[Tensor, Tensor]) -> Tensor:
    """Return the product by the vendor's FP8 library, without bias."""
    scales = x[1][:, None], w[1][None, :]
    return torch._scaled_mm(x[0], w[0].T, *scales, out_dtype=torch.bfloat16, use_fast_accum=True)


def _errors(o: Operands) -> dict[str, float]:
    """Return how far some rows of the product are from float64: of the 8-bit operands, and of the original ones."""
    x, w = quantise_rows(o.x[:2048]), quantise_rows(o.weight)
    found = fp8_linear(*x, *w, o.bias, out_dtype=torch.float32).double()
    wide = [t.double() for t in (*x, *w)]
    same = reference.fp8_linear(wide[0], wide[1], wide[2], wide[3], o.bias.double())
    exact = o.x[:2048].double() @ o.weight.double().T + o.bias.double()
    return {
        "of accumulating, 8-bit operands given": float((found - same).norm() / same.norm()),
        "of everything, beside the product of the unquantised operands": float((found - exact).norm() / exact.norm()),
    }


@torch.no_grad()
def _where_it_pays(rounds: int) -> list[dict[str, Any]]:
    """Time gate, product and residual of smaller shapes both ways."""
    found = []
    for width, rows in itertools.product(MORE_WIDTHS, FEWER_ROWS):
        calls = _gated_outputs(Operands.of(rows, width, width, True))
        both = device_interleaved({name: captured(call).replay for name, call in calls.items()}, rounds=rounds)
        row = {"rows": rows, "width": width, "times_faster": round(both[OURS].median / both[FP8].median, 3)}
        found.append(row | {name: timing.as_dict() for name, timing in both.items()})
    return found


def _beside(timings: Mapping[str, Timing], work: float) -> dict[str, Any]:
    def faster(than: str, timing: Timing) -> dict[str, float]:
        if than not in timings:
            return {}
        return {f"times_faster_than {than}": round(timings[than].median / timing.median, 3)}

    return {
        name: {
            **timing.as_dict(),
            "tflops": round(timing.rate(work) / 1e12, 1),
            **faster(OURS, timing),
            **faster(LIBRARY, timing),
        }
        for name, timing in timings.items()
    }
