# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Gradients of what lies between the products: the gate with its norm and dropout, and SiLU.

Parameters' gradients are summed in two stages, no atomics: each program walks its own rows and leaves one row of
partial sums; `triton_parameters.column_sums` adds those. The same GPU gives the same bits every time.

A group is what one norm sees, see `triton_output.py`. Shapes: T rows, G = H·d_v, N columns of U, V, Q and K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from longview.ops.dropout.triton_counter import kept
from longview.ops.hstu_layer.tiling import Walk, processors
from longview.ops.hstu_layer.triton_norm import BACKWARD, Statistics
from longview.ops.hstu_layer.triton_numerics import silu_derivative
from longview.ops.hstu_layer.triton_output import Gate

SILU_COLUMNS = 256
SILU_BACKWARD = Walk(elements=1024, warps=2, resident=16)


@triton.jit(do_not_specialize=["level", "groups_total"])
def gate_backward_kernel(
    d_gated, a, u, pre, mean, rstd, gamma, beta, d_a, d_u, gated, sums,
    seed, level, kept_by, groups_total, u_stride, d_u_stride, pre_stride,
    W: tl.constexpr, GROUPS: tl.constexpr, R: tl.constexpr, WP: tl.constexpr, WRITE: tl.constexpr,
    DROP: tl.constexpr, SLOPED: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """Gradients of A and of U after SiLU; with WRITE the gated rows once more.

    `sums`: partial sums for the norm's scale and shift (programs, 2, W). With SLOPED (GROUPS is 1) U is SiLU(`pre`),
    the gradient is that of `pre`, and `sums` (programs, 3, W) has those of its bias, too.
    """
    column = tl.arange(0, WP)
    g = tl.load(gamma + column, mask=column < W, other=0.0).to(tl.float32)
    b = tl.load(beta + column, mask=column < W, other=0.0).to(tl.float32)
    if DROP:
        drawn = tl.load(seed)
    sum_gamma = tl.zeros((R, WP), tl.float32)
    sum_beta = tl.zeros((R, WP), tl.float32)
    sum_u = tl.zeros((R, WP), tl.float32)
    for block in tl.range(tl.program_id(0), tl.cdiv(groups_total, R), tl.num_programs(0)):
        group = block * R + tl.arange(0, R)
        there = group < groups_total
        live = there[:, None] & (column < W)[None, :]
        at = group.to(tl.int64)[:, None] * W + column[None, :]
        token, first = group // GROUPS, (group % GROUPS) * W
        inside = first[:, None] + column[None, :]
        gate = tl.load(u + token.to(tl.int64)[:, None] * u_stride + inside, mask=live, other=0.0).to(tl.float32)
        x = tl.load(a + at, mask=live, other=0.0).to(tl.float32)
        d_y = tl.load(d_gated + at, mask=live, other=0.0).to(tl.float32)
        mu = tl.load(mean + group, mask=there, other=0.0)
        scale = tl.load(rstd + group, mask=there, other=0.0)
        n = tl.where(live, (x - mu[:, None]) * scale[:, None], 0.0)
        affine = n * g[None, :] + b[None, :]
        y = ((x - mu[:, None]) * scale[:, None] * g[None, :] + b[None, :]) * gate
        if DROP:
            keep = kept(drawn, token, first, level, WP)
            d_y = tl.where(keep, d_y * kept_by, 0.0)
            y = tl.where(keep, y * kept_by, 0.0)
        if WRITE:
            tl.store(gated + at, y, mask=live)
        d_u_at = token.to(tl.int64)[:, None] * d_u_stride + inside
        slope_u = d_y * affine
        if SLOPED:
            pre_at = token.to(tl.int64)[:, None] * pre_stride + inside
            slope_u *= silu_derivative(tl.load(pre + pre_at, mask=live, other=0.0).to(tl.float32), TANH)
            sum_u += slope_u
        tl.store(d_u + d_u_at, slope_u, mask=live)
        d_affine = d_y * gate
        sum_gamma += d_affine * n
        sum_beta += d_affine
        d_n = d_affine * g[None, :]
        along = tl.sum(d_n * n, 1) / W
        inner = d_n - (tl.sum(d_n, 1) / W)[:, None] - n * along[:, None]
        tl.store(d_a + at, scale[:, None] * inner, mask=live)
    mine = sums + tl.program_id(0) * (3 if SLOPED else 2) * W + column
    tl.store(mine, tl.sum(sum_gamma, 0), mask=column < W)
    tl.store(mine + W, tl.sum(sum_beta, 0), mask=column < W)
    if SLOPED:
        tl.store(mine + 2 * W, tl.sum(sum_u, 0), mask=column < W)


@triton.jit(do_not_specialize=["T"])
def silu_backward_kernel(
    d_uvqk, pre, d_bias, T, N, activated, R: tl.constexpr, BN: tl.constexpr,
    TANH: tl.constexpr,
):  # fmt: skip
    """Multiply the leading `activated` columns of d_uvqk by SiLU'(pre) in place; partial column sums of the result."""
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    total = tl.zeros((R, BN), tl.float32)
    for block in tl.range(tl.program_id(1), tl.cdiv(T, R), tl.num_programs(1)):
        row = block * R + tl.arange(0, R)
        live = (row < T)[:, None] & (column < N)[None, :]
        chosen = (row < T)[:, None] & (column < activated)[None, :]
        at = row.to(tl.int64)[:, None] * N + column[None, :]
        d = tl.load(d_uvqk + at, mask=live, other=0.0).to(tl.float32)
        x = tl.load(pre + row.to(tl.int64)[:, None] * activated + column[None, :], mask=chosen, other=0.0)
        d = tl.where(chosen, d * silu_derivative(x.to(tl.float32), TANH), d)
        tl.store(d_uvqk + at, d, mask=live)
        total += d
    tl.store(d_bias + tl.program_id(1) * N + column, tl.sum(total, 0), mask=column < N)


@dataclass(frozen=True)
class GateGradients:
    """What `gate_backward` leaves beside d_U: (T, G), and partial sums over the rows.

    `sums`, float32 (programs, 2 W), are those for scale and shift of the norm over W; (programs, 3 W) where the
    gradient went on through U's SiLU: then those of its bias come last.
    """

    d_a: Tensor
    gated: Tensor
    sums: Tensor


def gate_backward(
    d_gated_TG: Tensor,
    a_TG: Tensor,
    u_TG: Tensor,
    d_u_TG: Tensor,
    gate: Gate,
    statistics: Statistics,
    gated: Tensor | None = None,
    pre_TG: Tensor | None = None,
    walk: Walk = BACKWARD,
) -> GateGradients:
    """Write the gradient of U (after SiLU) into `d_u_TG`, or of `pre_TG` (before) where that is given (one group).

    The gated rows are the given ones, or else made again.
    """
    rows, width = a_TG.shape
    groups, wide = rows * gate.groups, width // gate.groups
    padded = max(8, triton.next_power_of_2(wide))
    programs = walk.programs(groups, padded, a_TG.device)
    d_a, sloped = torch.empty_like(a_TG), pre_TG is not None
    pre = u_TG if pre_TG is None else pre_TG
    write, gated = gated is None, torch.empty_like(a_TG) if gated is None else gated
    partial = a_TG.new_empty(programs, 3 if sloped else 2, wide, dtype=torch.float32)
    gate_backward_kernel[(programs,)](
        d_gated_TG, a_TG, u_TG, pre, *statistics, gate.weight, gate.bias, d_a, d_u_TG, gated, partial,
        **gate.dropout(), groups_total=groups, u_stride=u_TG.stride(0), d_u_stride=d_u_TG.stride(0),
        pre_stride=pre.stride(0), W=wide, GROUPS=gate.groups, R=walk.rows(padded), WP=padded, WRITE=write,
        DROP=gate.rate > 0, SLOPED=sloped, TANH=u_TG.is_cuda and u_TG.dtype != torch.float32, num_warps=walk.warps,
    )  # fmt: skip
    return GateGradients(d_a, gated, partial.flatten(1))


def silu_backward_(d_uvqk_TN: Tensor, pre: Tensor, walk: Walk = SILU_BACKWARD) -> Tensor:
    """Turn the gradient after SiLU into the one before it, in place; return partial column sums (., N) float32."""
    rows, columns = d_uvqk_TN.shape
    across = triton.cdiv(columns, SILU_COLUMNS)
    block = walk.rows(SILU_COLUMNS)
    down = max(1, min(triton.cdiv(rows, block), walk.resident * processors(d_uvqk_TN.device) // across))
    partial = d_uvqk_TN.new_empty(down, columns, dtype=torch.float32)
    silu_backward_kernel[(across, down)](
        d_uvqk_TN, pre, partial, rows, columns, pre.shape[1], R=block, BN=SILU_COLUMNS,
        TANH=pre.is_cuda and pre.dtype != torch.float32, num_warps=walk.warps,
    )  # fmt: skip
    return partial


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    types = dict.fromkeys(("d_gated", "a", "u", "pre", "d_a", "d_u", "gated"), "*bf16")
    types.update(dict.fromkeys(("mean", "rstd", "gamma", "beta", "sums"), "*fp32"))
    types.update({"seed": "*i64", "level": "i32", "kept_by": "fp32", "groups_total": "i32"})
    types.update({"u_stride": "i32:16", "d_u_stride": "i32:16", "pre_stride": "i32:16"})
    options = {"num_warps": BACKWARD.warps}
    for width, groups in ((512, 1), (1024, 1), (128, 4)):
        sizes = {"W": width, "GROUPS": groups, "R": BACKWARD.rows(width), "WP": width, "WRITE": True, "DROP": True}
        sizes |= {"SLOPED": groups == 1, "TANH": True}
        found.append((f"gate backward {width}", gate_backward_kernel, types, sizes, options))
    silu_types = {"d_uvqk": "*bf16", "pre": "*bf16", "d_bias": "*fp32", "T": "i32", "N": "i32", "activated": "i32"}
    silu_sizes = {"R": SILU_BACKWARD.rows(SILU_COLUMNS), "BN": SILU_COLUMNS, "TANH": True}
    options = {"num_warps": SILU_BACKWARD.warps}
    found.append(("silu backward", silu_backward_kernel, silu_types, silu_sizes, options))
    return found
