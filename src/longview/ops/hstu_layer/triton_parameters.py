# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""What is left of a backward pass once the tokens are done: partial sums, and the projection's gradients.

Small tensors, but a dozen library calls on them take longer to launch than to run, in every layer. Sums are taken in a
fixed order: the same bits every time.

Shapes: N columns of U, V, Q and K, K the layer's width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from longview.ops.hstu_layer.settings import LayerParameters

SUMMED, ROWS = 32, 256  # columns and rows that a program takes at a time
COLUMNS, DOWN = 8, 256  # the same for the projection's gradients: narrow, so that there are enough programs


@triton.jit
def _sum_block(partial, sums, block, rows, columns, stride, R: tl.constexpr, C: tl.constexpr):
    """Sum all rows of a block of C columns."""
    column = block * C + tl.arange(0, C)
    total = tl.zeros((R, C), tl.float32)
    for start in range(0, rows, R):
        row = start + tl.arange(0, R)
        live = (row < rows)[:, None] & (column < columns)[None, :]
        at = row.to(tl.int64)[:, None] * stride + column[None, :]
        total += tl.load(partial + at, mask=live, other=0.0)
    tl.store(sums + column, tl.sum(total, 0), mask=column < columns)


@triton.jit(do_not_specialize=["rows_a", "rows_b", "rows_c", "columns_a", "columns_b", "columns_c"])
def sums_kernel(
    a, b, c, sums, rows_a, rows_b, rows_c, columns_a, columns_b, columns_c, stride_a, stride_b, stride_c,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Column sums of three matrices, one after another in `sums`; C columns a program."""
    block = tl.program_id(0)
    of_a, of_b = tl.cdiv(columns_a, C), tl.cdiv(columns_b, C)
    if block < of_a:
        _sum_block(a, sums, block, rows_a, columns_a, stride_a, R, C)
    elif block < of_a + of_b:
        _sum_block(b, sums + columns_a, block - of_a, rows_b, columns_b, stride_b, R, C)
    else:
        _sum_block(c, sums + columns_a + columns_b, block - of_a - of_b, rows_c, columns_c, stride_c, R, C)


@triton.jit
def projection_gradients_kernel(
    product, weight, gamma, beta, d_shift, d_weight, d_gamma, d_beta, N, K, R: tl.constexpr, C: tl.constexpr
):
    """C columns of dW = M * gamma + d_b beta^T, and of the sums over rows of W * M and W * d_b."""
    column = tl.program_id(0) * C + tl.arange(0, C)
    scale = tl.load(gamma + column, mask=column < K, other=0.0).to(tl.float32)
    shift = tl.load(beta + column, mask=column < K, other=0.0).to(tl.float32)
    sum_gamma = tl.zeros((R, C), tl.float32)
    sum_beta = tl.zeros((R, C), tl.float32)
    for start in range(0, N, R):
        row = start + tl.arange(0, R)
        live = (row < N)[:, None] & (column < K)[None, :]
        at = row[:, None] * K + column[None, :]
        m = tl.load(product + at, mask=live, other=0.0)
        w = tl.load(weight + at, mask=live, other=0.0).to(tl.float32)
        d = tl.load(d_shift + row, mask=row < N, other=0.0)
        tl.store(d_weight + at, m * scale[None, :] + d[:, None] * shift[None, :], mask=live)
        sum_gamma += w * m
        sum_beta += w * d[:, None]
    tl.store(d_gamma + column, tl.sum(sum_gamma, 0), mask=column < K)
    tl.store(d_beta + column, tl.sum(sum_beta, 0), mask=column < K)


def column_sums(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return the column sums of three float32 matrices, one after another (columns of a, b and c,)."""
    parts = (a, b, c)
    columns = [x.shape[1] for x in parts]
    sums = a.new_empty(sum(columns))
    sums_kernel[(sum(triton.cdiv(size, SUMMED) for size in columns),)](
        *parts, sums, *(len(x) for x in parts), *columns, *(x.stride(0) for x in parts),
        R=ROWS, C=SUMMED, num_warps=8,
    )  # fmt: skip
    return sums


def projection_gradients(
    product_NK: Tensor, d_shift: Tensor, parameters: LayerParameters
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the norm's scale and shift (K,) and of the projection (N, K), in their dtypes.

    Args:
        product_NK: M, the gradient before SiLU times the normalised rows, float32 and contiguous.
        d_shift: (N,) float32, the gradient of the projection's bias.
        parameters: of the layer.
    """
    (rows, width), p = product_NK.shape, parameters
    d_gamma, d_beta, d_weight = (torch.empty_like(x) for x in (p.norm_weight, p.norm_bias, p.uvqk_weight))
    projection_gradients_kernel[(triton.cdiv(width, COLUMNS),)](
        product_NK, p.uvqk_weight, p.norm_weight, p.norm_bias, d_shift, d_weight, d_gamma, d_beta, rows, width,
        R=DOWN, C=COLUMNS, num_warps=4,
    )  # fmt: skip
    return d_gamma, d_beta, d_weight


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    sizes = dict.fromkeys([f"{kind}_{x}" for kind in ("rows", "columns", "stride") for x in "abc"], "i32")
    sums = {**dict.fromkeys(("a", "b", "c", "sums"), "*fp32"), **sizes}
    tensors = ("product", "weight", "gamma", "beta", "d_shift", "d_weight", "d_gamma", "d_beta")
    return [
        ("column sums", sums_kernel, sums, {"R": ROWS, "C": SUMMED}, {"num_warps": 8}),
        (
            "gradients of the projection",
            projection_gradients_kernel,
            {**dict.fromkeys(tensors, "*fp32"), "N": "i32", "K": "i32"},
            {"R": DOWN, "C": COLUMNS},
            {"num_warps": 4},
        ),
    ]
