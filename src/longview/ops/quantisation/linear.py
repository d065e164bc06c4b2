"""A linear map with an FP8 product forward and the gradients of the plain one (straight through).

Source: ULTRA-HSTU, arXiv 2602.16986: FP8 forward, bfloat16 backward. Shape suffixes: T rows, K inner, N columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longview.ops.quantisation.fp8 import fp8_linear, quantise_rows


def quantised_linear(
    x_TK: Tensor, weight_NK: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Return x weight^T + bias + residual with an FP8 product forward and the gradients of the plain product.

    A drop-in for `residual + F.linear(x, weight, bias)`; operands are quantised by rows on the way.

    Args:
        x_TK: (T, K), float32, bfloat16 or float16; residual: (T, N) of the same dtype.
        weight_NK: (N, K) of any of these dtypes; bias: (N,).

    Returns:
        (T, N), dtype of x.

    Raises:
        InputError: as `quantise_rows` and `fp8_linear`.
    """
    out: Tensor = QuantisedLinear.apply(x_TK, weight_NK, bias, residual)  # type: ignore[no-untyped-call]
    return out


class QuantisedLinear(torch.autograd.Function):
    """`apply(x, weight, bias, residual)`; backward is that of the product of the unquantised operands."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_NK: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TK, weight_NK)
        ctx.bias = None if bias is None else bias.dtype
        x, w = quantise_rows(x_TK.detach()), quantise_rows(weight_NK.detach())
        return fp8_linear(*x, *w, bias=bias, residual=residual, out_dtype=x_TK.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x_TK, weight_NK = ctx.saved_tensors
        d_x, d_weight, d_bias, d_residual = ctx.needs_input_grad
        return (
            d_out @ weight_NK.to(d_out.dtype) if d_x else None,
            (d_out.T @ x_TK).to(weight_NK.dtype) if d_weight else None,
            d_out.float().sum(0).to(ctx.bias) if d_bias else None,
            d_out if d_residual else None,
        )
