# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Rows to E4M3 in one pass: as they are, after the input's norm, and after the gate.

What precedes an FP8 product reads each row once: statistics, normalisation, gate, dropout, the row's largest magnitude
and rounding happen while the row is in registers, and half the bytes of a bfloat16 row leave.

Shapes: T rows, K columns (KP: rounded up to a power of two), R rows a program. In the gate a row has GROUPS parts
(GP: rounded up) of W columns (WP), each normalised by itself.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from longview.ops.dropout.counter import kept_scale, level
from longview.ops.dropout.triton_counter import kept
from longview.ops.hstu_layer.tiling import Walk
from longview.ops.quantisation.triton_rounding import scale_of, to_e4m3

NORM_ELEMENTS, GATE_ELEMENTS = 2048, 1024  # that a warp holds


@triton.jit(do_not_specialize=["T"])
def rows_kernel(
    x, out, scales, gamma, beta, mean, rstd, T, K, epsilon,
    R: tl.constexpr, KP: tl.constexpr, NORMED: tl.constexpr, BY_HAND: tl.constexpr,
):  # fmt: skip
    """R rows of x, or with NORMED of LayerNorm(x), and their scales; then also the statistics."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.arange(0, KP)
    inside = column < K
    live = (row < T)[:, None] & inside[None, :]
    at = row.to(tl.int64)[:, None] * K + column[None, :]
    y = tl.load(x + at, mask=live, other=0.0).to(tl.float32)
    if NORMED:
        mu = tl.sum(y, 1) / K
        centred = tl.where(live, y - mu[:, None], 0.0)
        norm = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / K + epsilon)
        tl.store(mean + row, mu, mask=row < T)
        tl.store(rstd + row, norm, mask=row < T)
        g = tl.load(gamma + column, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(beta + column, mask=inside, other=0.0).to(tl.float32)
        y = centred * norm[:, None] * g[None, :] + b[None, :]
    by, scale = scale_of(tl.max(tl.abs(y), 1))
    tl.store(scales + row, scale, mask=row < T)
    tl.store(out + at, to_e4m3(y * by[:, None], BY_HAND), mask=live)


@triton.jit(do_not_specialize=["level", "T"])
def gate_rows_kernel(
    a, u, out, scales, mean, rstd, gamma, beta, seed, level, kept_by, T, W, u_stride, epsilon,
    GROUPS: tl.constexpr, GP: tl.constexpr, R: tl.constexpr, WP: tl.constexpr, DROP: tl.constexpr,
    BY_HAND: tl.constexpr,
):  # fmt: skip
    """R rows of mask * norm(a) * u, their scales, and the statistics of every part."""
    part = tl.arange(0, R * GP)
    token, head = tl.program_id(0) * R + part // GP, part % GP
    column = tl.arange(0, WP)
    there = (token < T) & (head < GROUPS)
    live = there[:, None] & (column < W)[None, :]
    across = head[:, None] * W + column[None, :]
    at = token.to(tl.int64)[:, None] * (GROUPS * W) + across
    x = tl.load(a + at, mask=live, other=0.0).to(tl.float32)
    gate = tl.load(u + token.to(tl.int64)[:, None] * u_stride + across, mask=live, other=0.0).to(tl.float32)
    mu = tl.sum(x, 1) / W
    centred = tl.where(live, x - mu[:, None], 0.0)
    norm = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / W + epsilon)
    tl.store(mean + token * GROUPS + head, mu, mask=there)
    tl.store(rstd + token * GROUPS + head, norm, mask=there)
    g = tl.load(gamma + column, mask=column < W, other=0.0).to(tl.float32)
    b = tl.load(beta + column, mask=column < W, other=0.0).to(tl.float32)
    y = (centred * norm[:, None] * g[None, :] + b[None, :]) * gate
    if DROP:
        y = tl.where(kept(tl.load(seed), token, head * W, level, WP), y * kept_by, 0.0)
    amax = tl.max(tl.abs(y), 1)
    if GP > 1:
        whole = tl.max(amax.reshape(R, GP), 1)
        amax = (whole[:, None] + tl.zeros((R, GP), tl.float32)).reshape(R * GP)
    by, scale = scale_of(amax)
    tl.store(scales + token, scale, mask=(token < T) & (head == 0))
    tl.store(out + at, to_e4m3(y * by[:, None], BY_HAND), mask=live)


def quantise(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Return E4M3 rows (T, K) and scales (T,) float32; x contiguous, T at least 1."""
    return _launch(x_TK, None, 0.0)[:2]


def normalise_quantise(
    z_TK: Tensor, gamma: Tensor, beta: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return E4M3 rows (T, K) of LayerNorm(z), scales (T,), and mean and 1/deviation of z's rows; T at least 1."""
    return _launch(z_TK, (gamma, beta), epsilon)


def _launch(
    x_TK: Tensor, affine: tuple[Tensor, Tensor] | None, epsilon: float
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    (rows, width), padded = x_TK.shape, triton.next_power_of_2(x_TK.shape[1])
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x_TK.device)
    scales, mean, rstd = (torch.empty(rows, dtype=torch.float32, device=x_TK.device) for _ in range(3))
    gamma, beta = affine or (None, None)
    walk = _walk(padded, NORM_ELEMENTS)
    rows_kernel[(walk.programs(rows, padded, x_TK.device),)](
        x_TK, out, scales, gamma, beta, mean, rstd, rows, width, epsilon,
        R=walk.rows(padded), KP=padded, NORMED=affine is not None, BY_HAND=not x_TK.is_cuda,
        num_warps=walk.warps,
    )  # fmt: skip
    return out, scales, (mean, rstd)


def gate_quantise(
    a_TG: Tensor,
    u_TG: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    epsilon: float,
    rate: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return E4M3 rows (T, G) of mask * norm(a) * u, scales (T,), and the statistics (T·groups,) of a's parts.

    a contiguous; u may be columns of a wider tensor; T at least 1.
    """
    (rows, columns), wide = a_TG.shape, a_TG.shape[1] // groups
    out = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=a_TG.device)
    scales = torch.empty(rows, dtype=torch.float32, device=a_TG.device)
    mean, rstd = (torch.empty(rows * groups, dtype=torch.float32, device=a_TG.device) for _ in range(2))
    padded_groups, padded = triton.next_power_of_2(groups), max(8, triton.next_power_of_2(wide))
    held = padded_groups * padded
    walk = _walk(held, GATE_ELEMENTS)
    gate_rows_kernel[(walk.programs(rows, held, a_TG.device),)](
        a_TG, u_TG, out, scales, mean, rstd, gamma, beta, seed, level(rate), kept_scale(rate), rows, wide,
        u_TG.stride(0), epsilon, GROUPS=groups, GP=padded_groups, R=walk.rows(held), WP=padded, DROP=rate > 0,
        BY_HAND=not a_TG.is_cuda, num_warps=walk.warps,
    )  # fmt: skip
    return out, scales, (mean, rstd)


def _walk(padded: int, by_warp: int) -> Walk:
    """Return how a kernel goes over rows of `padded` columns: two at a time or more."""
    elements = max(2048, 2 * padded)
    return Walk(elements, min(16, elements // by_warp))


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    floats = dict.fromkeys(("scales", "gamma", "beta", "mean", "rstd"), "*fp32")
    for width in (512, 1024, 2048):
        walk = _walk(width, NORM_ELEMENTS)
        types = {"x": "*bf16", "out": "*fp8e4nv", **floats, "T": "i32", "K": "i32:16", "epsilon": "fp32"}
        sizes = {"R": walk.rows(width), "KP": width, "NORMED": True, "BY_HAND": False}
        found.append((f"norm {width}", rows_kernel, types, sizes, {"num_warps": walk.warps}))
        types = {"x": "*bf16", "out": "*fp8e4nv", "scales": "*fp32", "mean": "*fp32", "rstd": "*fp32", "T": "i32"}
        types |= {"K": "i32:16", "epsilon": "fp32"}
        bare: dict[str, Any] = {**sizes, "NORMED": False, "gamma": None, "beta": None}
        found.append((f"rows {width}", rows_kernel, types, bare, {"num_warps": walk.warps}))
    for width, groups in ((1024, 1), (128, 8), (2048, 1)):
        types = {**dict.fromkeys(("a", "u"), "*bf16"), "out": "*fp8e4nv", **floats, "seed": "*i64", "level": "i32"}
        types |= {"kept_by": "fp32", "T": "i32", "W": "i32:16", "u_stride": "i32:16", "epsilon": "fp32"}
        held = width * groups
        walk = _walk(held, GATE_ELEMENTS)
        sizes = {"GROUPS": groups, "GP": groups, "R": walk.rows(held), "WP": width, "DROP": True, "BY_HAND": False}
        found.append((f"gate {width}", gate_rows_kernel, types, sizes, {"num_warps": walk.warps}))
    return found
