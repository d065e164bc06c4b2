# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Pieces the kernels of the layer share: SiLU and its derivative, the order and the halves of tiles.

`TANH` chooses the form of the sigmoid: by the hardware's tanh (one special-function operation, relative error 2^-11:
enough for 16-bit results), or by exp (float32, and Triton's interpreter, which knows no inline assembly).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh_approx(x):
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def sigmoid(x, TANH: tl.constexpr):
    if TANH:
        share = 0.5 * tanh_approx(0.5 * x) + 0.5
    else:
        share = 1.0 / (1.0 + tl.exp(-x))
    return share


@triton.jit
def silu(x, TANH: tl.constexpr):
    if TANH:
        half = 0.5 * x
        result = half * tanh_approx(half) + half
    else:
        result = x / (1.0 + tl.exp(-x))
    return result


@triton.jit
def silu_derivative(x, TANH: tl.constexpr):
    share = sigmoid(x, TANH)
    return share * (1.0 + x * (1.0 - share))


@triton.jit
def tile_of(number, blocks_m, blocks_n, GROUP: tl.constexpr):
    """Return the (row, column) of a tile: down `GROUP` row blocks first, then on to the next column block."""
    per_group = GROUP * blocks_n
    first = (number // per_group) * GROUP
    tall = min(blocks_m - first, GROUP)
    inside = number % per_group
    return first + inside % tall, inside // tall


@triton.jit
def halves_of(x, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """Return the left and the right half of a (ROWS, WIDE) tile."""
    return x.reshape(ROWS, 2, WIDE // 2).permute(0, 2, 1).split()
