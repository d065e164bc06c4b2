# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The relative bias inside the kernels: looked up pair by pair, and its gradient gathered without atomics.

Tables are float32: `position` (heads, P), entry |i - j|, the last one beyond; `time` (heads, B), entry
floor(ln(max(|dt|, 1)) / 0.301). `stamps` are int32 times of the batch's tokens, from any common origin.

Each program sums into partial tables of its own, in the order of its tiles, and the partial tables are added up
afterwards: the same bits every time. The gradient of a distance is the sum of a diagonal: the tile is written to
memory straight and read back slanted. The gradient of a time bucket is a masked sum; a tile meets few buckets, since
times rise along a history.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longview.ops.attention.triton_tile import program_again

PER_BUCKET = tl.constexpr(1 / 0.301)  # as in `bias.py`
ROWS = tl.constexpr(16)


@triton.jit
def add_bias(
    half_z, left, right, n, head, position, time, stamps,
    P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Return half_z + bias / 2 for tokens `left` (rows of the tile) and `right` (its columns).

    P and B are the sizes of the tables; 0 where there is none.
    """
    if P > 0:
        distance = tl.minimum(tl.abs(left[:, None] - right[None, :]), P - 1)
        half_z += 0.5 * tl.load(position + head * P + distance)
    if B > 0:
        half_z += 0.5 * tl.load(time + head * B + buckets(left, right, n, stamps, B))
    return half_z


@triton.jit
def buckets(left, right, n, stamps, B: tl.constexpr):
    """Return the time bucket of every pair of tokens."""
    a = tl.load(stamps + left, mask=left < n, other=0)
    b = tl.load(stamps + right, mask=right < n, other=0)
    difference = tl.abs(a[:, None] - b[None, :]).to(tl.float32)
    bucket = tl.log(tl.maximum(difference, 1.0)) * PER_BUCKET
    return tl.minimum(bucket, B - 1).to(tl.int32)


@triton.jit
def collect_time(total, d_z, left, right, n, stamps, B: tl.constexpr, PADDED: tl.constexpr):
    """Return `total` (PADDED,) plus the sums of `d_z` by time bucket."""
    bucket = buckets(left, right, n, stamps, B)
    slots = tl.arange(0, PADDED)
    for b in range(tl.min(bucket), tl.max(bucket) + 1):
        here = tl.sum(tl.where(bucket == b, d_z, 0.0))
        total += tl.where(slots == b, here, 0.0)
    return total


@triton.jit
def collect_position(
    d_z, first, at, slant, part, P: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, FAST: tl.constexpr
):
    """Add the sums of `d_z` (BM, BN), rows from `first` and columns from `at` on, by distance to this program's row
    of `part` (programs, P). `slant` (programs, BM, 2 max(BM, BN)) is memory to work in.
    """
    WIDE: tl.constexpr = 2 * BM if BM > BN else 2 * BN  # BM + BN at least, and a power of two
    program = program_again(FAST).to(tl.int64)  # here, so that no register holds its places through the loops
    slant += program * BM * WIDE
    part += program * P
    i, j, o = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, WIDE)
    tl.store(slant + i[:, None] * WIDE + j[None, :], d_z)
    tl.debug_barrier()
    diagonal = tl.zeros([WIDE], tl.float32)
    for start in range(0, BM, ROWS):  # a few rows at a time, for the sake of registers
        row = start + tl.arange(0, ROWS)
        column = o[None, :] + row[:, None] - (BM - 1)  # of the entry on diagonal o
        inside = (column >= 0) & (column < BN)
        diagonal += tl.sum(tl.load(slant + row[:, None] * WIDE + column, mask=inside, other=0.0), 0)
    distance = first - at + (BM - 1) - o
    near = tl.abs(distance) < P - 1
    for back in tl.static_range(2):  # a row sees what is before it, and some what is after it
        chosen = near & ((distance >= 0) if back == 0 else (distance < 0))
        slot = part + tl.abs(distance)
        tl.store(slot, tl.load(slot, mask=chosen, other=0.0) + diagonal, mask=chosen)
        tl.debug_barrier()
    beyond = tl.sum(tl.where(near, 0.0, diagonal))
    tl.store(part + P - 1, tl.load(part + P - 1) + beyond)
    tl.debug_barrier()
