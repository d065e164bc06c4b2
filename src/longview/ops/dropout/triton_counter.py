# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The bits of `counter.py` inside a kernel.

Drawing is a good part of what a kernel that only reads, gates and writes has to compute. Hence products of 64 bits,
one instruction for both halves where `tl.philox` takes two, and comparisons that need the high half of a word alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longview.ops.dropout import counter

ROUNDS = tl.constexpr(counter.ROUNDS)


@triton.jit
def kept(seed, row_R, column_R, level, BLOCK: tl.constexpr):
    """Return (R, BLOCK) booleans for the columns from `column_R` (multiples of 8) on; see `counter.py`.

    Each thread that holds eight neighbouring columns draws for them itself: no element changes threads.
    """
    eighth = (column_R // 8)[:, None] + tl.arange(0, BLOCK // 8)[None, :]
    w0, w1, w2, w3 = _philox(seed, eighth, row_R[:, None] + tl.zeros_like(eighth))
    # join() puts its operands innermost: this order makes the word's number the flattened index.
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    # Whatever follows the sixteen bits of a number, it is below a level exactly where the whole is.
    numbers = tl.join(words << 16, words).reshape(row_R.shape[0], BLOCK)
    return numbers >= (level.to(tl.uint32) << 16)


@triton.jit
def _philox(seed, c0, c1):
    """Return four words for each counter (c0, c1, 0, 0)."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    high, low = _product(c0.to(tl.uint32), 0xD2511F53)
    c0, c1, c2, c3 = c1.to(tl.uint32) ^ k0, tl.zeros_like(low), high ^ k1, low
    for _ in tl.static_range(ROUNDS - 1):
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
        high, low = _product(c0, 0xD2511F53)
        high_2, low_2 = _product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high_2 ^ c1 ^ k0, low_2, high ^ c3 ^ k1, low
    return c0, c1, c2, c3


@triton.jit
def _product(x, FACTOR: tl.constexpr):
    """Return the high and the low word of x * FACTOR."""
    whole = x.to(tl.uint64) * FACTOR
    return (whole >> 32).to(tl.uint32), whole.to(tl.uint32)
