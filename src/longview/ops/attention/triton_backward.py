"""The backward kernels: d_q by blocks of rows, d_k and d_v by blocks of keys; the scores are computed again in both.

    dV_j = 1/S sum_i M_ij silu(z_ij) dO_i          G_ij = M_ij <dO_i, v_j> silu'(z_ij)
    dQ_i = alpha/S sum_j G_ij k_j                  dK_j = alpha/S sum_i G_ij q_i

Sums are float32 in registers, in a fixed order: the same bits every time. Keys that nearly every row sees would keep
one program busy long after the others; their rows are cut into slices whose sums are added up afterwards.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longview.ops.attention.triton_mask import columns_of_rows, key_stop, pick, row_stop, rows_of_keys, tiles_of, visible
from longview.ops.attention.triton_tile import load_rows, silu_and_slope, store_rows


@triton.jit
def attention_backward_rows(
    q, k, v, d_out, d_q, items, offsets, contexts, targets,
    q_token, q_head, k_token, k_head, v_token, v_head, d_out_token, d_out_head, d_q_token, d_q_head,
    half_alpha, scale,
    M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr,
    HEADS: tl.constexpr, D_QK: tl.constexpr, D_V: tl.constexpr, P_QK: tl.constexpr, P_V: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write `d_q`; arguments as in `attention_forward`."""
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
    d_out += begin * d_out_token + head * d_out_head
    d_q += begin * d_q_token + head * d_q_head

    a, a_stop, a_full, a_full_stop, b, b_stop, b_full, b_full_stop, g, g_stop = columns_of_rows(
        first, stop, c, e, n, M
    )
    a, a_full, a_full_stop, a_stop = tiles_of(a, a_stop, a_full, a_full_stop, 0, BN)
    b, b_full, b_full_stop, b_stop = tiles_of(b, b_stop, b_full, b_full_stop, a_stop, BN)
    g, _, _, g_stop = tiles_of(g, g_stop, 0, 0, b_stop, BN)

    q_MD = load_rows(q, first, stop, q_token, BM, D_QK, P_QK, True)
    d_out_MD = load_rows(d_out, first, stop, d_out_token, BM, D_V, P_V, True)
    sum_MD = tl.zeros([BM, P_QK], tl.float32)
    a_count = a_full_stop - a_full
    for i in tl.range(0, a_count + b_full_stop - b_full):
        at = pick(i, a_full, a_count, b_full + i - a_count) * BN
        k_ND = load_rows(k, at, n, k_token, BN, D_QK, P_QK, False)
        v_ND = load_rows(v, at, n, v_token, BN, D_V, P_V, False)
        z_MN = tl.dot(q_MD, k_ND.T, input_precision=PRECISION) * half_alpha
        d_weight_MN = tl.dot(d_out_MD, v_ND.T, input_precision=PRECISION)
        _, slope_MN = silu_and_slope(z_MN, FAST)
        d_z_MN = d_weight_MN * slope_MN
        sum_MD = tl.dot(d_z_MN.to(k_ND.dtype), k_ND, sum_MD, input_precision=PRECISION)

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
        v_ND = load_rows(v, at, n, v_token, BN, D_V, P_V, True)
        z_MN = tl.dot(q_MD, k_ND.T, input_precision=PRECISION) * half_alpha
        d_weight_MN = tl.dot(d_out_MD, v_ND.T, input_precision=PRECISION)
        _, slope_MN = silu_and_slope(z_MN, FAST)
        columns = at + tl.arange(0, BN)
        seen_MN = visible(rows[:, None], columns[None, :], c, e, n, M, CONTEXT, TARGETS)
        d_z_MN = tl.where(seen_MN, d_weight_MN * slope_MN, 0.0)
        sum_MD = tl.dot(d_z_MN.to(k_ND.dtype), k_ND, sum_MD, input_precision=PRECISION)

    store_rows(d_q, first, stop, d_q_token, sum_MD * (2 * half_alpha * scale), BM, D_QK, P_QK)


@triton.jit
def attention_backward_keys(
    q, k, v, d_out, d_k, d_v, part_k, part_v, items, offsets, contexts, targets,
    q_token, q_head, k_token, k_head, v_token, v_head, d_out_token, d_out_head,
    d_k_token, d_k_head, d_v_token, d_v_head,
    half_alpha, scale,
    M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr,
    HEADS: tl.constexpr, D_QK: tl.constexpr, D_V: tl.constexpr, P_QK: tl.constexpr, P_V: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write `d_k` and `d_v`, or where a block is sliced its share to `part_k` and `part_v`.

    `items` as `work.key_items`; `part_*` (slots, heads, BN, D) float32; other arguments as in `attention_forward`.
    """
    item, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    sequence = tl.load(items + 5 * item)
    if sequence < 0:
        return
    first = tl.load(items + 5 * item + 1)
    slice_start = tl.load(items + 5 * item + 2)
    slice_stop = tl.load(items + 5 * item + 3)
    slot = tl.load(items + 5 * item + 4)
    begin = tl.load(offsets + sequence)
    n = (tl.load(offsets + sequence + 1) - begin).to(tl.int32)
    c, e = n * 0, n
    if CONTEXT:
        c = tl.load(contexts + sequence).to(tl.int32)
    if TARGETS:
        e = n - tl.load(targets + sequence).to(tl.int32)
    stop = key_stop(first, c, e, n, BN, M)
    q += begin * q_token + head * q_head
    k += begin * k_token + head * k_head
    v += begin * v_token + head * v_head
    d_out += begin * d_out_token + head * d_out_head

    x, x_stop, x_full, x_full_stop, y, y_stop, y_full, y_full_stop, \
        r, r_stop, r_full, r_full_stop, t, t_stop, t_full, t_full_stop = rows_of_keys(first, stop, c, e, n, M)  # fmt: skip
    low, high = slice_start // BM, slice_stop // BM
    x, x_full, x_full_stop, x_stop = _slice(*tiles_of(x, x_stop, x_full, x_full_stop, 0, BM), low, high)
    y, y_full, y_full_stop, y_stop = _slice(*tiles_of(y, y_stop, y_full, y_full_stop, x_stop, BM), low, high)
    r, r_full, r_full_stop, r_stop = _slice(*tiles_of(r, r_stop, r_full, r_full_stop, y_stop, BM), low, high)
    t, t_full, t_full_stop, t_stop = _slice(*tiles_of(t, t_stop, t_full, t_full_stop, r_stop, BM), low, high)

    k_ND = load_rows(k, first, stop, k_token, BN, D_QK, P_QK, True)
    v_ND = load_rows(v, first, stop, v_token, BN, D_V, P_V, True)
    sum_k_ND = tl.zeros([BN, P_QK], tl.float32)
    sum_v_ND = tl.zeros([BN, P_V], tl.float32)
    x_count, y_count, r_count = x_full_stop - x_full, y_full_stop - y_full, r_full_stop - r_full
    for i in tl.range(0, x_count + y_count + r_count + t_full_stop - t_full):
        tile = pick(i - x_count - y_count, r_full, r_count, t_full + i - x_count - y_count - r_count)
        tile = pick(i, x_full, x_count, pick(i - x_count, y_full, y_count, tile))
        at = tile * BM
        q_MD = load_rows(q, at, n, q_token, BM, D_QK, P_QK, False)
        d_out_MD = load_rows(d_out, at, n, d_out_token, BM, D_V, P_V, False)
        z_NM = tl.dot(k_ND, q_MD.T, input_precision=PRECISION) * half_alpha
        d_weight_NM = tl.dot(v_ND, d_out_MD.T, input_precision=PRECISION)
        weight_NM, slope_NM = silu_and_slope(z_NM, FAST)
        sum_v_ND = tl.dot(weight_NM.to(d_out_MD.dtype), d_out_MD, sum_v_ND, input_precision=PRECISION)
        d_z_NM = d_weight_NM * slope_NM
        sum_k_ND = tl.dot(d_z_NM.to(q_MD.dtype), q_MD, sum_k_ND, input_precision=PRECISION)

    keys = first + tl.arange(0, BN)
    one, two = x_full - x, x_full - x + x_stop - x_full_stop
    three = two + y_full - y
    four = three + y_stop - y_full_stop
    five = four + r_full - r
    six = five + r_stop - r_full_stop
    seven = six + t_full - t
    for i in tl.range(0, seven + t_stop - t_full_stop):
        tile = tl.where(i < seven, t + i - six, t_full_stop + i - seven)
        tile = tl.where(i < six, tl.where(i < five, r + i - four, r_full_stop + i - five), tile)
        tile = tl.where(i < four, tl.where(i < three, y + i - two, y_full_stop + i - three), tile)
        tile = tl.where(i < two, tl.where(i < one, x + i, x_full_stop + i - one), tile)
        at = tile * BM
        q_MD = load_rows(q, at, n, q_token, BM, D_QK, P_QK, True)
        d_out_MD = load_rows(d_out, at, n, d_out_token, BM, D_V, P_V, True)
        z_NM = tl.dot(k_ND, q_MD.T, input_precision=PRECISION) * half_alpha
        d_weight_NM = tl.dot(v_ND, d_out_MD.T, input_precision=PRECISION)
        weight_NM, slope_NM = silu_and_slope(z_NM, FAST)
        rows = at + tl.arange(0, BM)
        seen_NM = visible(rows[None, :], keys[:, None], c, e, n, M, CONTEXT, TARGETS)
        weight_NM = tl.where(seen_NM, weight_NM, 0.0)
        sum_v_ND = tl.dot(weight_NM.to(d_out_MD.dtype), d_out_MD, sum_v_ND, input_precision=PRECISION)
        d_z_NM = tl.where(seen_NM, d_weight_NM * slope_NM, 0.0)
        sum_k_ND = tl.dot(d_z_NM.to(q_MD.dtype), q_MD, sum_k_ND, input_precision=PRECISION)

    sum_k_ND *= 2 * half_alpha * scale
    sum_v_ND *= scale
    if slot < 0:
        d_k += begin * d_k_token + head * d_k_head
        d_v += begin * d_v_token + head * d_v_head
        store_rows(d_k, first, stop, d_k_token, sum_k_ND, BN, D_QK, P_QK)
        store_rows(d_v, first, stop, d_v_token, sum_v_ND, BN, D_V, P_V)
    else:
        place = (slot * HEADS + head).to(tl.int64) * BN
        store_rows(part_k + place * D_QK, first * 0, BN, D_QK, sum_k_ND, BN, D_QK, P_QK)
        store_rows(part_v + place * D_V, first * 0, BN, D_V, sum_v_ND, BN, D_V, P_V)


@triton.jit
def attention_backward_sum(
    part_k, part_v, d_k, d_v, sums, offsets, contexts, targets,
    d_k_token, d_k_head, d_v_token, d_v_head,
    M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr,
    HEADS: tl.constexpr, D_QK: tl.constexpr, D_V: tl.constexpr, P_QK: tl.constexpr, P_V: tl.constexpr,
    BN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Add up the slices of each sliced block of keys, oldest rows first, and write `d_k` and `d_v`.

    `sums` as `work.key_items`; a program takes ROWS (a divisor of BN) of a block's keys.
    """
    SHARES: tl.constexpr = BN // ROWS
    pid = tl.program_id(0)
    block, head, share = pid // (HEADS * SHARES), pid // SHARES % HEADS, pid % SHARES
    sequence = tl.load(sums + 4 * block)
    if sequence < 0:
        return
    first = tl.load(sums + 4 * block + 1)
    slot, count = tl.load(sums + 4 * block + 2), tl.load(sums + 4 * block + 3)
    begin = tl.load(offsets + sequence)
    n = (tl.load(offsets + sequence + 1) - begin).to(tl.int32)
    c, e = n * 0, n
    if CONTEXT:
        c = tl.load(contexts + sequence).to(tl.int32)
    if TARGETS:
        e = n - tl.load(targets + sequence).to(tl.int32)
    stop = key_stop(first, c, e, n, BN, M)
    sum_k = tl.zeros([ROWS, P_QK], tl.float32)
    sum_v = tl.zeros([ROWS, P_V], tl.float32)
    for i in tl.range(0, count):
        place = ((slot + i) * HEADS + head).to(tl.int64) * BN + share * ROWS
        sum_k += load_rows(part_k + place * D_QK, first * 0, ROWS, D_QK, ROWS, D_QK, P_QK, False)
        sum_v += load_rows(part_v + place * D_V, first * 0, ROWS, D_V, ROWS, D_V, P_V, False)
    d_k += begin * d_k_token + head * d_k_head
    d_v += begin * d_v_token + head * d_v_head
    store_rows(d_k, first + share * ROWS, stop, d_k_token, sum_k, ROWS, D_QK, P_QK)
    store_rows(d_v, first + share * ROWS, stop, d_v_token, sum_v, ROWS, D_V, P_V)


@triton.jit
def _slice(first, full, full_stop, stop, low, high):
    """Return the part of a range of tiles that lies in `low:high`."""
    first, stop = tl.maximum(first, low), tl.minimum(stop, high)
    stop = tl.maximum(stop, first)
    full = tl.minimum(tl.maximum(full, first), stop)
    full_stop = tl.minimum(tl.maximum(full_stop, full), stop)
    return first, full, full_stop, stop
