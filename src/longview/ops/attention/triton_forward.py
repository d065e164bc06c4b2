# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The forward kernel: one program per block of query rows and head.

    out_i = 1/S sum_j M_ij silu(alpha <q_i, k_j>) v_j

It walks over the tiles of keys that its rows see (`triton_mask.py`), first those that need no mask, then the others;
the order is free because nothing is normalised. With JOINED both kinds share one loop: a little more work a tile, but
the pipeline of loads fills once instead of twice, which pays where a block sees few tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longview.ops.attention.triton_bias import add_bias
from longview.ops.attention.triton_mask import columns_of_rows, pick, row_stop, tiles_of, visible
from longview.ops.attention.triton_tile import entry, load_rows, silu, store_rows


@triton.jit
def attention_forward(
    q, k, v, out, items, position, time, stamps,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head,
    half_alpha, scale,
    M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr,
    HEADS: tl.constexpr, D_QK: tl.constexpr, D_V: tl.constexpr, P_QK: tl.constexpr, P_V: tl.constexpr,
    P: tl.constexpr, B: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, JOINED: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write `out`. `items` as `work.row_items`; `*_token`, `*_head` are strides; `scale` is 1 / S.

    P_QK and P_V are D_QK and D_V rounded up to powers of two; P and B are the sizes of the bias tables
    (`triton_bias.py`), 0 without.
    """
    item, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    first, begin, n, c, e = entry(items, item, CONTEXT, TARGETS)
    if first < 0:
        return
    stop = row_stop(first, c, e, n, BM, M, CONTEXT, TARGETS)
    shift = tl.load(items + 8 * item + 5).to(tl.int64)
    q += shift * q_token + head * q_head
    k += begin * k_token + head * k_head
    v += begin * v_token + head * v_head
    out += shift * out_token + head * out_head
    stamps += begin
    a, a_full, a_full_stop, a_stop, b, b_full, b_full_stop, b_stop, g, g_stop = column_tiles(
        first, stop, c, e, n, BN, M, CONTEXT, TARGETS
    )
    whole = a_full_stop - a_full + b_full_stop - b_full
    count = whole + a_full - a + a_stop - a_full_stop + b_full - b + b_stop - b_full_stop + g_stop - g

    q_MD = load_rows(q, first, stop, q_token, BM, D_QK, P_QK, True)
    sum_MD = tl.zeros([BM, P_V], tl.float32)
    rows = first + tl.arange(0, BM)
    if not JOINED:
        for i in tl.range(0, whole):
            at = pick(i, a_full, a_full_stop - a_full, b_full + i - (a_full_stop - a_full)) * BN
            k_ND = load_rows(k, at, n, k_token, BN, D_QK, P_QK, False)
            v_ND = load_rows(v, at, n, v_token, BN, D_V, P_V, False)
            z_MN = tl.dot(q_MD, k_ND.T, input_precision=PRECISION) * half_alpha
            if P + B > 0:
                z_MN = add_bias(z_MN, rows, at + tl.arange(0, BN), n, head, position, time, stamps, P, B)
            weight_MN = silu(z_MN, FAST)
            sum_MD = tl.dot(weight_MN.to(v_ND.dtype), v_ND, sum_MD, input_precision=PRECISION)
    for i in tl.range(0 if JOINED else whole, count):
        tile = edge_tile(i - whole, a, a_full, a_full_stop, a_stop, b, b_full, b_full_stop, b_stop, g, TARGETS)
        if JOINED:
            inner = pick(i, a_full, a_full_stop - a_full, b_full + i - (a_full_stop - a_full))
            tile = tl.where(i < whole, inner, tile)
        at = tile * BN
        k_ND = load_rows(k, at, n, k_token, BN, D_QK, P_QK, True)
        v_ND = load_rows(v, at, n, v_token, BN, D_V, P_V, True)
        z_MN = tl.dot(q_MD, k_ND.T, input_precision=PRECISION) * half_alpha
        columns = at + tl.arange(0, BN)
        if P + B > 0:
            z_MN = add_bias(z_MN, rows, columns, n, head, position, time, stamps, P, B)
        weight_MN = silu(z_MN, FAST)
        if i >= whole:
            seen_MN = visible(rows[:, None], columns[None, :], c, e, n, M, CONTEXT, TARGETS)
            weight_MN = tl.where(seen_MN, weight_MN, 0.0)
        sum_MD = tl.dot(weight_MN.to(v_ND.dtype), v_ND, sum_MD, input_precision=PRECISION)
    store_rows(out, first, stop, out_token, sum_MD * scale, BM, D_V, P_V)


@triton.jit
def column_tiles(
    first, stop, c, e, n, SIZE: tl.constexpr, M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr
):
    """Return the tiles that rows `first:stop` see: of global keys and of the window (first, whole, whole_stop, last)
    and of the targets (first, last)."""
    a, a_stop, a_full, a_full_stop, b, b_stop, b_full, b_full_stop, g, g_stop = columns_of_rows(
        first, stop, c, e, n, M, CONTEXT, TARGETS
    )
    a, a_full, a_full_stop, a_stop = tiles_of(a, a_stop, a_full, a_full_stop, 0, SIZE)
    b, b_full, b_full_stop, b_stop = tiles_of(b, b_stop, b_full, b_full_stop, a_stop, SIZE)
    g, g_full, g_full_stop, g_stop = tiles_of(g, g_stop, g_stop, g_stop, b_stop, SIZE)
    return a, a_full, a_full_stop, a_stop, b, b_full, b_full_stop, b_stop, g, g_stop


@triton.jit
def edge_tile(i, a, a_full, a_full_stop, a_stop, b, b_full, b_full_stop, b_stop, g, TARGETS: tl.constexpr):
    """Return the i-th of the tiles that need a mask."""
    one, two, three, four = a_full - a, a_stop - a_full_stop, b_full - b, b_stop - b_full_stop
    tile = b_full_stop + i - one - two - three
    if TARGETS:
        tile = pick(i - one - two - three, b_full_stop, four, g + i - one - two - three - four)
    tile = pick(i - one - two, b, three, tile)
    return pick(i, a, one, pick(i - one, a_full_stop, two, tile))
