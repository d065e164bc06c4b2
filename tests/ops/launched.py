# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
"""Two small kernels, which the tests of `longview.ops.launch` launch."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n"])
def add(x, out, n, value, BLOCK: tl.constexpr):
    """Write x + value."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, tl.load(x + place, mask=place < n) + value, mask=place < n)


@triton.jit(do_not_specialize=["n"])
def double(x, out, n, BLOCK: tl.constexpr):
    """Write 2 x."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, 2 * tl.load(x + place, mask=place < n), mask=place < n)
