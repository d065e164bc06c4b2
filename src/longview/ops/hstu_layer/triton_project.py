# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""LayerNorm, the U·V·Q·K product, its bias and SiLU in one kernel.

With W' = W * gamma and b' = b + W beta the projection of a normalised row is W' (z - mean) * rstd + b', which gives
the product kernel four forms:

- `fold`: the main loop multiplies raw z by W'; the epilogue computes rstd * (sum - mean * rowsum(W')) + b'. z is
  never rounded a second time; float32 sums keep the subtraction exact to about |mean| / std * 1e-6.
- `inside`: `fold`, the statistics summed from the tiles that the main loop loads anyway, no pass of their own.
- `tile`: z is normalised and rounded between loading and multiplying. The form for a float32 residual stream under
  16-bit products, where rounding raw z would lose what the subtraction needs.
- `given`: z is normalised already.

Shapes: T rows, K width, N = columns of U, V, Q and K; tiles BM × BN, BK of K at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longview.ops.hstu_layer.tiling import Tiling, roomy
from longview.ops.hstu_layer.triton_norm import Statistics, normalise
from longview.ops.hstu_layer.triton_numerics import silu, tile_of

FOLD_COLUMNS = 1024


@triton.jit
def fold_kernel(weight, bias, gamma, beta, folded, row_sum, shift, K, BLOCK: tl.constexpr):
    """One row of W' = weight * gamma in the dtype of the product, the sum of that rounded row, and b'."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    moved = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        at = start + column
        live = at < K
        w = tl.load(weight + row * K + at, mask=live, other=0.0).to(tl.float32)
        scaled = (w * tl.load(gamma + at, mask=live, other=0.0).to(tl.float32)).to(folded.dtype.element_ty)
        tl.store(folded + row * K + at, scaled, mask=live)
        total += scaled.to(tl.float32)
        moved += w * tl.load(beta + at, mask=live, other=0.0).to(tl.float32)
    tl.store(row_sum + row, tl.sum(total, 0))
    tl.store(shift + row, tl.sum(moved, 0) + tl.load(bias + row).to(tl.float32))


@triton.jit(do_not_specialize=["T"])
def project_kernel(
    z, w, out, pre, z_first, mean, rstd, row_sum, shift, T, epsilon,
    N: tl.constexpr, K: tl.constexpr, ACTIVATED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, FORM: tl.constexpr,
    FLATTEN: tl.constexpr, HALVES: tl.constexpr, TANH: tl.constexpr,
    SAVE: tl.constexpr,
):  # fmt: skip
    """Tiles of SiLU(norm(z) @ w.T + shift); z, w, out and pre are tensor descriptors, z_first points at z."""
    blocks_m, blocks_n = tl.cdiv(T, BM), tl.cdiv(N, BN)
    for number in tl.range(tl.program_id(0), blocks_m * blocks_n, tl.num_programs(0), flatten=FLATTEN):
        block_m, block_n = tile_of(number, blocks_m, blocks_n, GROUP)
        m, n = block_m * BM, block_n * BN
        row, column = m + tl.arange(0, BM), n + tl.arange(0, BN)
        live = row < T
        if FORM == "fold" or FORM == "tile":
            mu = tl.load(mean + row, mask=live, other=0.0)
            scale = tl.load(rstd + row, mask=live, other=0.0)
        if FORM == "inside":
            # Squares are summed around the row's first element: around zero they would lose a large common offset.
            pivot = tl.load(z_first + row.to(tl.int64) * K, mask=live, other=0.0).to(tl.float32)
            first = tl.zeros((BM,), tl.float32)
            second = tl.zeros((BM,), tl.float32)
        acc = tl.zeros((BM, BN), tl.float32)
        for k in tl.range(0, K, BK):
            x = z.load([m, k])
            if FORM == "tile":
                x = (x.to(tl.float32) - mu[:, None]) * scale[:, None]
            if FORM == "inside":
                moved = x.to(tl.float32) - pivot[:, None]
                first += tl.sum(moved, 1)
                second += tl.sum(moved * moved, 1)
            acc = tl.dot(x.to(w.dtype), w.load([n, k]).T, acc, input_precision="ieee")
        if FORM == "inside":
            drift = first / K
            mu = pivot + drift
            scale = 1.0 / tl.sqrt(tl.maximum(second / K - drift * drift, 0.0) + epsilon)
            tl.store(mean + row, mu, mask=live & (block_n == 0))
            tl.store(rstd + row, scale, mask=live & (block_n == 0))
        if FORM == "fold" or FORM == "inside":
            sums = tl.load(row_sum + column, mask=column < N, other=0.0)
            acc = scale[:, None] * (acc - mu[:, None] * sums[None, :])
        acc += tl.load(shift + column, mask=column < N, other=0.0)[None, :]
        if HALVES == 2:
            left, right = acc.reshape(BM, 2, BN // 2).permute(0, 2, 1).split()
            _leave(left, out, pre, m, n, ACTIVATED, BN // 2, TANH, SAVE)
            _leave(right, out, pre, m, n + BN // 2, ACTIVATED, BN // 2, TANH, SAVE)
        else:
            _leave(acc, out, pre, m, n, ACTIVATED, BN, TANH, SAVE)


@triton.jit
def _leave(x, out, pre, m, n, activated, WIDE: tl.constexpr, TANH: tl.constexpr, SAVE: tl.constexpr):
    """Store SiLU(x) where the column is activated, else x; with SAVE also x (`pre` ends where activation does)."""
    if SAVE:
        pre.store([m, n], x.to(pre.dtype))
    chosen = (n + tl.arange(0, WIDE)) < activated
    out.store([m, n], tl.where(chosen[None, :], silu(x, TANH), x).to(out.dtype))


@dataclass(frozen=True)
class Folded:
    """The projection with the norm's scale and shift folded in."""

    weight: Tensor  # (N, K), dtype of the product
    row_sum: Tensor  # (N,) float32
    shift: Tensor  # (N,) float32


@dataclass(frozen=True)
class Projected:
    """What the projection leaves; `pre` (T, activated) holds what SiLU saw, if it was asked for."""

    uvqk: Tensor
    pre: Tensor | None
    statistics: Statistics


def fold(weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, dtype: torch.dtype) -> Folded:
    """Return W' and what goes with it, from the parameters in any floating dtype."""
    columns, width = weight.shape
    row_sum, shift = (torch.empty(columns, dtype=torch.float32, device=weight.device) for _ in range(2))
    folded = torch.empty(columns, width, dtype=dtype, device=weight.device)
    block = min(FOLD_COLUMNS, triton.next_power_of_2(width))
    fold_kernel[(columns,)](weight, bias, gamma, beta, folded, row_sum, shift, width, BLOCK=block, num_warps=4)
    return Folded(folded, row_sum, shift)


def project(
    z_TK: Tensor,
    folded: Folded,
    activated: int,
    epsilon: float,
    *,
    statistics: Statistics | None = None,
    save_pre: bool = False,
    tiling: Tiling | None = None,
) -> Projected:
    """Return SiLU(norm(z) W' + b') with columns from `activated` on left without SiLU.

    z (T, K) contiguous, T at least 1; 16-byte rows everywhere. Statistics are computed unless given.
    """
    (rows, width), columns = z_TK.shape, len(folded.weight)
    tiling = tiling or default_tiling(z_TK.dtype, folded.weight.dtype, roomy(z_TK.device))
    form = tiling.form
    if form == "inside" and (statistics is not None or width % tiling.depth):
        form = "fold"
    if statistics is None and form == "inside":
        statistics = z_TK.new_empty(rows, dtype=torch.float32), z_TK.new_empty(rows, dtype=torch.float32)
    elif statistics is None:
        statistics, _ = normalise(z_TK, epsilon)
    uvqk = torch.empty(rows, columns, dtype=folded.weight.dtype, device=z_TK.device)
    pre = torch.empty(rows, activated, dtype=uvqk.dtype, device=z_TK.device) if save_pre else None
    leaving = [tiling.rows, tiling.columns // tiling.halves]
    project_kernel[(tiling.programs(rows, columns, z_TK.device),)](
        TensorDescriptor.from_tensor(z_TK, [tiling.rows, tiling.depth]),
        TensorDescriptor.from_tensor(folded.weight, [tiling.columns, tiling.depth]),
        TensorDescriptor.from_tensor(uvqk, leaving),
        None if pre is None else TensorDescriptor.from_tensor(pre, leaving),
        z_TK, *statistics, folded.row_sum, folded.shift, rows, epsilon,
        N=columns, K=width, ACTIVATED=activated,
        **{**tiling.constants(), "FORM": form},
        TANH=uvqk.is_cuda and uvqk.dtype != torch.float32,
        SAVE=save_pre,
        **tiling.launch(),
    )  # fmt: skip
    return Projected(uvqk, pre, statistics)


def default_tiling(stream: torch.dtype, product: torch.dtype, large: bool = True) -> Tiling:
    """Return the tiling for a residual stream and a product of these dtypes; `large`: with 227 KB of shared memory."""
    if product == torch.float32:
        return Tiling(64, 64, 32, 4, 2, group=8, form="fold")
    form: Literal["tile", "fold"] = "tile" if stream == torch.float32 else "fold"
    if not large:
        return Tiling(128, 128, 32, 8, 2, group=8, halves=2, form=form)
    if form == "tile":
        return Tiling(128, 128, 64, 8, 3, group=8, form=form)
    return Tiling(128, 256, 64, 8, 3, group=8, halves=2, form=form)


def signature(tiling: Tiling, stream: str = "bf16", product: str = "bf16", save: bool = False) -> dict[str, str]:
    """Return the types of the product kernel's arguments."""
    leaving = f"tensordesc<{product}[{tiling.rows},{tiling.columns // tiling.halves}]>"
    types = {
        "z": f"tensordesc<{stream}[{tiling.rows},{tiling.depth}]>",
        "w": f"tensordesc<{product}[{tiling.columns},{tiling.depth}]>",
        "out": leaving,
        "z_first": f"*{stream}",
    }
    types.update(dict.fromkeys(("mean", "rstd", "row_sum", "shift"), "*fp32"))
    types.update({"T": "i32", "epsilon": "fp32"})
    return {**types, "pre": leaving} if save else types


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    types = dict.fromkeys(("weight", "bias", "gamma", "beta", "row_sum", "shift"), "*fp32")
    found.append(("fold", fold_kernel, {**types, "folded": "*bf16", "K": "i32"}, {"BLOCK": 512}, {"num_warps": 4}))
    for stream in ("bf16", "fp32"):
        tiling = default_tiling(torch.float32 if stream == "fp32" else torch.bfloat16, torch.bfloat16)
        for save in (False, True):
            sizes = {"N": 2048, "K": 512, "ACTIVATED": 2048}
            constants = {**tiling.constants(), **sizes, "TANH": True, "SAVE": save, **({} if save else {"pre": None})}
            name = f"project {tiling.form} {stream}{' save' if save else ''}"
            found.append((name, project_kernel, signature(tiling, stream, save=save), constants, tiling.launch()))
    return found
