# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The bits of `counter.py` inside a kernel."""

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
    row = row_R[:, None] + tl.zeros_like(eighth)
    zero = tl.zeros_like(eighth)
    w0, w1, w2, w3 = tl.philox(seed, eighth, row, zero, zero, n_rounds=ROUNDS)
    # join() puts its operands innermost: this order makes the word's number the flattened index.
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    halves = tl.join(words & 0xFFFF, words >> 16)
    return halves.reshape(row_R.shape[0], BLOCK) >= level
