"""A layer's matrix products: in the precision of the run, or with 8-bit operands where those are wanted or faster."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longview.ops.quantisation import quantised_linear, why_not_fp8

Precision = Literal["run", "fp8", "auto"]
"""`run`: as everything else; `fp8`: E4M3, emulated on a CPU; `auto`: fp8 where it was measured to be faster."""


def in_8_bits(x_TK: Tensor, product: nn.Linear, precision: Precision) -> bool:
    """Return whether the product of these rows has 8-bit operands."""
    if precision != "auto":
        return precision == "fp8"
    return why_not_fp8(x_TK.device, len(x_TK), product.in_features, product.out_features) is None


def linear(x_TK: Tensor, product: nn.Linear, precision: Precision, columns: slice | None = None) -> Tensor:
    """Return the product of the rows x, or some of its `columns`: the same numbers, whichever are asked for together.

    Raises:
        InputError: 8-bit operands on a GPU without them; the message says why.
    """
    eight = in_8_bits(x_TK, product, precision)
    if columns is None and not eight:
        return product(x_TK)  # type: ignore[no-any-return]
    weight, bias = (
        (product.weight, product.bias) if columns is None else (product.weight[columns], product.bias[columns])
    )
    if not eight:
        return F.linear(x_TK, weight, bias)
    kind = x_TK.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_TK.dtype
    return quantised_linear(x_TK.to(dtype), weight, bias)
