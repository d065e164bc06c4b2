# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The input's normalisation: row statistics forward, and its gradient.

The affine part is not here: it is folded into the projection (`triton_project.fold`), so "normed" below is
(z - mean) * rstd, and the gradients of scale and shift follow from those of the folded weights.

Shapes: T rows, K columns; a program holds R whole rows of KP columns (K rounded up to a power of two).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from longview.ops.hstu_layer.tiling import Walk

FORWARD = Walk(elements=2048, warps=1)
BACKWARD = Walk(elements=512, warps=2, resident=16)  # few programs, so that few partial sums remain

Statistics = tuple[Tensor, Tensor]
"""Mean and 1/standard deviation of each row, float32."""


@triton.jit(do_not_specialize=["T"])
def norm_kernel(
    z, normed, mean, rstd, T, epsilon, K: tl.constexpr, R: tl.constexpr, KP: tl.constexpr, GIVEN: tl.constexpr,
    WRITE: tl.constexpr,
):  # fmt: skip
    """Statistics of R rows, unless GIVEN; with WRITE also the normalised rows."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, KP)
    live = (row < T)[:, None] & (column < K)[None, :]
    at = row.to(tl.int64)[:, None] * K + column[None, :]
    x = tl.load(z + at, mask=live, other=0.0).to(tl.float32)
    if GIVEN:
        mu = tl.load(mean + row, mask=row < T, other=0.0)
        scale = tl.load(rstd + row, mask=row < T, other=0.0)
    else:
        mu = tl.sum(x, 1) / K
        centred = x - mu[:, None] if K == KP else tl.where(live, x - mu[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / K + epsilon)
        tl.store(mean + row, mu, mask=row < T)
        tl.store(rstd + row, scale, mask=row < T)
    if WRITE:
        tl.store(normed + at, (x - mu[:, None]) * scale[:, None], mask=live)


@triton.jit(do_not_specialize=["T"])
def norm_backward_kernel(
    z, d_normed, d_out, mean, rstd, d_z, normed, d_bias, T, K: tl.constexpr, R: tl.constexpr, KP: tl.constexpr,
    WRITE: tl.constexpr,
):  # fmt: skip
    """d_z = d_out + rstd * (g - mean(g) - normed * mean(g * normed)), with g = d_normed.

    Also the column sums of d_out over this program's rows, one row of `d_bias`: the gradient of the output's bias.
    """
    column = tl.arange(0, KP)
    total = tl.zeros((R, KP), tl.float32)
    for block in tl.range(tl.program_id(0), tl.cdiv(T, R), tl.num_programs(0)):
        row = block * R + tl.arange(0, R)
        live = (row < T)[:, None] & (column < K)[None, :]
        at = row.to(tl.int64)[:, None] * K + column[None, :]
        x = tl.load(z + at, mask=live, other=0.0).to(tl.float32)
        g = tl.load(d_normed + at, mask=live, other=0.0).to(tl.float32)
        residual = tl.load(d_out + at, mask=live, other=0.0).to(tl.float32)
        mu = tl.load(mean + row, mask=row < T, other=0.0)
        scale = tl.load(rstd + row, mask=row < T, other=0.0)
        n = tl.where(live, (x - mu[:, None]) * scale[:, None], 0.0)
        if WRITE:
            tl.store(normed + at, n, mask=live)
        along = tl.sum(g * n, 1) / K
        inner = g - (tl.sum(g, 1) / K)[:, None] - n * along[:, None]
        tl.store(d_z + at, residual + scale[:, None] * inner, mask=live)
        total += residual
    tl.store(d_bias + tl.program_id(0) * K + column, tl.sum(total, 0), mask=column < K)


def normalise(
    z_TK: Tensor,
    epsilon: float,
    given: Statistics | None = None,
    normed_dtype: torch.dtype | None = None,
    walk: Walk = FORWARD,
) -> tuple[Statistics, Tensor | None]:
    """Return the statistics of each row and, where `normed_dtype` is not None, the normalised rows (T, K)."""
    rows, width = z_TK.shape
    mean, rstd = given or (z_TK.new_empty(rows, dtype=torch.float32), z_TK.new_empty(rows, dtype=torch.float32))
    normed = None if normed_dtype is None else torch.empty_like(z_TK, dtype=normed_dtype)
    padded = triton.next_power_of_2(width)
    sizes = {"K": width, "R": walk.rows(padded), "KP": padded}
    constants = {**sizes, "GIVEN": given is not None, "WRITE": normed is not None}
    grid = (walk.programs(rows, padded, z_TK.device),)
    norm_kernel[grid](z_TK, normed, mean, rstd, rows, epsilon, **constants, num_warps=walk.warps)
    return (mean, rstd), normed


def normalise_backward(
    z_TK: Tensor,
    d_normed_TK: Tensor,
    d_out_TK: Tensor,
    statistics: Statistics,
    normed: Tensor | None = None,
    walk: Walk = BACKWARD,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return d_z (T, K), the normalised rows (the given ones, or else made in the dtype of `d_normed_TK`), and the
    partial column sums of d_out (programs, K), float32."""
    rows, width = z_TK.shape
    padded = triton.next_power_of_2(width)
    programs = walk.programs(rows, padded, z_TK.device)
    d_z, partial = torch.empty_like(z_TK), z_TK.new_empty(programs, width, dtype=torch.float32)
    write, normed = normed is None, torch.empty_like(d_normed_TK) if normed is None else normed
    norm_backward_kernel[(programs,)](
        z_TK, d_normed_TK, d_out_TK, *statistics, d_z, normed, partial, rows,
        K=width, R=walk.rows(padded), KP=padded, WRITE=write, num_warps=walk.warps,
    )  # fmt: skip
    return d_z, normed, partial


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    for width in (512, 1024):
        forward = {"z": "*bf16", "normed": "*bf16", "mean": "*fp32", "rstd": "*fp32", "T": "i32"}
        backward = {**forward, "d_normed": "*bf16", "d_out": "*bf16", "d_z": "*bf16", "d_bias": "*fp32"}
        sizes = {"K": width, "R": FORWARD.rows(width), "KP": width, "WRITE": True, "GIVEN": False}
        options = {"num_warps": FORWARD.warps}
        found.append((f"norm {width}", norm_kernel, {**forward, "epsilon": "fp32"}, sizes, options))
        sizes = {"K": width, "R": BACKWARD.rows(width), "KP": width, "WRITE": True}
        options = {"num_warps": BACKWARD.warps}
        found.append((f"norm backward {width}", norm_backward_kernel, backward, sizes, options))
    return found
