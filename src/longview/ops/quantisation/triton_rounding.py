# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Scaling a row to the range of E4M3 and rounding it, as the kernels that end in 8-bit numbers share it.

Same numbers as `reference.quantise_rows`: the largest magnitude of a row becomes 448, division is correctly rounded,
a row with an infinity or a NaN becomes NaN where it matters instead of something that looks sound.
"""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST = tl.constexpr(448.0)
SMALLEST_AMAX = tl.constexpr(2.0**-96)


@triton.jit
def scale_of(amax):
    """Return what a row is multiplied by before rounding, and the scale that takes it back."""
    amax = tl.maximum(amax, SMALLEST_AMAX, propagate_nan=tl.PropagateNan.ALL)
    return tl.div_rn(LARGEST, amax), tl.div_rn(amax, LARGEST)


@triton.jit
def to_e4m3(x, BY_HAND: tl.constexpr):
    """Return x as E4M3: nearest, ties to even, magnitudes beyond 448 saturate, NaN stays.

    BY_HAND: rounded by arithmetic first, for Triton's interpreter, whose own conversion rounds wrongly.
    """
    x = tl.minimum(x, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    x = tl.maximum(x, -LARGEST, propagate_nan=tl.PropagateNan.ALL)
    if BY_HAND:
        floor = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)  # power of two below |x|
        pivot = tl.maximum(floor * 0.125, 0.001953125) * 12582912.0  # 1.5 * 2^23 spacings of E4M3 at x
        x = (x + pivot) - pivot
    return x.to(tl.float8e4nv)
