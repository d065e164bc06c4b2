"""The forward kernel: one program per block of query rows and head.

    out_i = 1/S sum_j M_ij silu(alpha <q_i, k_j>) v_j

It walks over the tiles of keys that its rows see (`triton_mask.py`), first those that need no mask, then the others;
the order is free because nothing is normalised.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longview.ops.attention.triton_mask import columns_of_rows, pick, row_stop, tiles_of, visible
from longview.ops.attention.triton_tile import load_rows, silu, store_rows


@triton.jit
def attention_forward(
    q, k, v, out, items, offsets, contexts, targets,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head,
    half_alpha, scale,
    M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr,
    HEADS: tl.constexpr, D_QK: tl.constexpr, D_V: tl.constexpr, P_QK: tl.constexpr, P_V: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write `out`. `items` as `work.row_items`; `*_token`, `*_head` are strides; `scale` is 1 / S.

    P_QK and P_V are D_QK and D_V rounded up to powers of two.
    """
    item, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    sequence = tl.load(items + 2 * item)
    if sequence < 0:
        return
    first = tl.load(items + 2 * item + 1)
    begin = tl.load(offsets + sequence)
    n = (tl.load(offsets + sequence + 1) - begin).to(tl.int32)
    c, e = n * 0, n
    if CONTEXT:
        c = tl.load(contexts + sequence).to(tl.int32)
    if TARGETS:
        e = n - tl.load(targets + sequence).to(tl.int32)
    stop = row_stop(first, c, e, n, BM, M)
    q += begin * q_token + head * q_head
    k += begin * k_token + head * k_head
    v += begin * v_token + head * v_head
    out += begin * out_token + head * out_head

    a, a_stop, a_full, a_full_stop, b, b_stop, b_full, b_full_stop, g, g_stop = columns_of_rows(
        first, stop, c, e, n, M
    )
    a, a_full, a_full_stop, a_stop = tiles_of(a, a_stop, a_full, a_full_stop, 0, BN)
    b, b_full, b_full_stop, b_stop = tiles_of(b, b_stop, b_full, b_full_stop, a_stop, BN)
    g, _, _, g_stop = tiles_of(g, g_stop, 0, 0, b_stop, BN)

    q_MD = load_rows(q, first, stop, q_token, BM, D_QK, P_QK, True)
    sum_MD = tl.zeros([BM, P_V], tl.float32)
    a_count = a_full_stop - a_full
    for i in tl.range(0, a_count + b_full_stop - b_full):
        at = pick(i, a_full, a_count, b_full + i - a_count) * BN
        k_ND = load_rows(k, at, n, k_token, BN, D_QK, P_QK, False)
        z_MN = tl.dot(q_MD, k_ND.T, input_precision=PRECISION) * half_alpha
        weight_MN = silu(z_MN, FAST)
        v_ND = load_rows(v, at, n, v_token, BN, D_V, P_V, False)
        sum_MD = tl.dot(weight_MN.to(v_ND.dtype), v_ND, sum_MD, input_precision=PRECISION)

    rows = first + tl.arange(0, BM)
    one, two, three, four = a_full - a, a_stop - a_full_stop, b_full - b, b_stop - b_full_stop
    count = one + two + three + four
    if TARGETS:
        count += g_stop - g
    for i in tl.range(0, count):
        tile = b_full_stop + i - one - two - three
        if TARGETS:
            tile = pick(i - one - two - three, b_full_stop, four, g + i - one - two - three - four)
        tile = pick(i - one - two, b, three, tile)
        tile = pick(i, a, one, pick(i - one, a_full_stop, two, tile))
        at = tile * BN
        k_ND = load_rows(k, at, n, k_token, BN, D_QK, P_QK, True)
        z_MN = tl.dot(q_MD, k_ND.T, input_precision=PRECISION) * half_alpha
        columns = at + tl.arange(0, BN)
        seen_MN = visible(rows[:, None], columns[None, :], c, e, n, M, CONTEXT, TARGETS)
        weight_MN = tl.where(seen_MN, silu(z_MN, FAST), 0.0)
        v_ND = load_rows(v, at, n, v_token, BN, D_V, P_V, True)
        sum_MD = tl.dot(weight_MN.to(v_ND.dtype), v_ND, sum_MD, input_precision=PRECISION)

    store_rows(out, first, stop, out_token, sum_MD * scale, BM, D_V, P_V)
