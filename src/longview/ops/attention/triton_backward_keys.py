# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The backward kernels of d_k and d_v, by blocks of keys; the formulas are in `triton_backward.py`.

Keys that nearly every row sees would keep one program busy long after the others; their rows are cut into slices whose
sums are added up afterwards.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longview.ops.attention.triton_backward import of_tile
from longview.ops.attention.triton_mask import key_stop, pick, rows_of_keys, tiles_of, visible
from longview.ops.attention.triton_tile import (
    entry,
    entry_again,
    fetch_rows,
    leave_before_silu,
    load_rows,
    program_again,
    store_rows,
)


@triton.jit
def attention_backward_keys(
    q, k, v, d_out, d_k, d_v, part_k, part_v, items, position, time, stamps, pre_k, pre_v, column_k, column_v,
    q_token, q_head, k_token, k_head, v_token, v_head, d_out_token, d_out_head,
    d_k_token, d_k_head, d_v_token, d_v_head,
    half_alpha, scale, sum_token,
    M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr,
    HEADS: tl.constexpr, D_QK: tl.constexpr, D_V: tl.constexpr, P_QK: tl.constexpr, P_V: tl.constexpr,
    P: tl.constexpr, B: tl.constexpr, SLOPED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, JOINED: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write `d_k` and `d_v`, or where a block is sliced its share to `part_k` and `part_v`.

    `items` as `work.key_items`; `part_*` (slots, heads, BN, D) float32; SLOPED as in `attention_backward_rows`; other
    arguments as in `attention_forward`.
    """
    item, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    first, begin, n, c, e = entry(items, item, CONTEXT, TARGETS)
    if first < 0:
        return
    stop = key_stop(first, c, e, n, BN, M, CONTEXT, TARGETS)
    q += begin * q_token + head * q_head
    k += begin * k_token + head * k_head
    v += begin * v_token + head * v_head
    d_out += begin * d_out_token + head * d_out_head
    stamps += begin
    x, x_full, x_full_stop, x_stop, y, y_full, y_full_stop, y_stop, \
        r, r_full, r_full_stop, r_stop, t, t_full, t_full_stop, whole, count = \
        _row_tiles(items, item, first, stop, c, e, n, BM, M, CONTEXT, TARGETS)  # fmt: skip
    if SLOPED and FAST:
        fetch_rows(pre_k + begin * d_k_token + head * d_k_head, first, stop, d_k_token, BN, D_QK)
        fetch_rows(pre_v + begin * d_v_token + head * d_v_head, first, stop, d_v_token, BN, D_V)
    k_ND = load_rows(k, first, stop, k_token, BN, D_QK, P_QK, True)
    v_ND = load_rows(v, first, stop, v_token, BN, D_V, P_V, True)
    sum_k_ND = tl.zeros([BN, P_QK], tl.float32)
    sum_v_ND = tl.zeros([BN, P_V], tl.float32)
    keys = first + tl.arange(0, BN)
    if not JOINED:
        for i in tl.range(0, whole):
            at = _row_whole_tile(
                i, x_full, x_full_stop, y_full, y_full_stop, r_full, r_full_stop, t_full, M, CONTEXT, TARGETS
            ) * BM  # fmt: skip
            q_MD = load_rows(q, at, n, q_token, BM, D_QK, P_QK, False)
            d_out_MD = load_rows(d_out, at, n, d_out_token, BM, D_V, P_V, False)
            weight_NM, d_z_NM = of_tile(
                k_ND, q_MD, v_ND, d_out_MD, keys, at + tl.arange(0, BM), n, head, half_alpha,
                position, time, stamps, P, B, FAST, PRECISION,
            )  # fmt: skip
            sum_v_ND = tl.dot(weight_NM.to(d_out_MD.dtype), d_out_MD, sum_v_ND, input_precision=PRECISION)
            sum_k_ND = tl.dot(d_z_NM.to(q_MD.dtype), q_MD, sum_k_ND, input_precision=PRECISION)
    for i in tl.range(0 if JOINED else whole, count):
        tile = _row_edge_tile(
            i - whole, x, x_full, x_full_stop, x_stop, y, y_full, y_full_stop, y_stop,
            r, r_full, r_full_stop, r_stop, t, t_full, t_full_stop, M, CONTEXT, TARGETS,
        )  # fmt: skip
        if JOINED:
            inner = _row_whole_tile(
                i, x_full, x_full_stop, y_full, y_full_stop, r_full, r_full_stop, t_full, M, CONTEXT, TARGETS
            )
            tile = tl.where(i < whole, inner, tile)
        at = tile * BM
        q_MD = load_rows(q, at, n, q_token, BM, D_QK, P_QK, True)
        d_out_MD = load_rows(d_out, at, n, d_out_token, BM, D_V, P_V, True)
        rows = at + tl.arange(0, BM)
        weight_NM, d_z_NM = of_tile(
            k_ND, q_MD, v_ND, d_out_MD, keys, rows, n, head, half_alpha,
            position, time, stamps, P, B, FAST, PRECISION,
        )  # fmt: skip
        if i >= whole:
            seen_NM = visible(rows[None, :], keys[:, None], c, e, n, M, CONTEXT, TARGETS)
            weight_NM = tl.where(seen_NM, weight_NM, 0.0)
            d_z_NM = tl.where(seen_NM, d_z_NM, 0.0)
        sum_v_ND = tl.dot(weight_NM.to(d_out_MD.dtype), d_out_MD, sum_v_ND, input_precision=PRECISION)
        sum_k_ND = tl.dot(d_z_NM.to(q_MD.dtype), q_MD, sum_k_ND, input_precision=PRECISION)

    # Found out (again) only now: through the loops every register is taken.
    program = program_again(FAST)
    item, head = program // HEADS, program % HEADS
    first, begin, n, c, e = entry_again(items, item, CONTEXT, TARGETS)
    stop = key_stop(first, c, e, n, BN, M, CONTEXT, TARGETS)
    slot = tl.load(items + 8 * item + 7, volatile=True)
    shift_k, shift_v = begin * d_k_token + head * d_k_head, begin * d_v_token + head * d_v_head
    place, row = (slot * HEADS + head).to(tl.int64) * BN, item.to(tl.int64) * sum_token
    _leave(
        sum_k_ND * (2 * half_alpha * scale), d_k + shift_k, pre_k + shift_k, column_k + row + head * D_QK,
        part_k + place * D_QK, first, stop, slot, d_k_token, BN, D_QK, P_QK, SLOPED, FAST,
    )  # fmt: skip
    _leave(
        sum_v_ND * scale, d_v + shift_v, pre_v + shift_v, column_v + row + head * D_V,
        part_v + place * D_V, first, stop, slot, d_v_token, BN, D_V, P_V, SLOPED, FAST,
    )  # fmt: skip


@triton.jit
def _leave(
    sum_ND, grads, pre, column, part, first, stop, slot, stride,
    BN: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, SLOPED: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Write a block's gradient, on through SiLU where SLOPED, or where it is sliced (slot is not -1) its share."""
    if slot < 0:
        if SLOPED:
            leave_before_silu(sum_ND, grads, pre, column, first, stop, stride, BN, DIM, PADDED, FAST)
        else:
            store_rows(grads, first, stop, stride, sum_ND, BN, DIM, PADDED)
    else:
        store_rows(part, first * 0, BN, DIM, sum_ND, BN, DIM, PADDED)


@triton.jit
def attention_backward_sum(
    part_k, part_v, d_k, d_v, sums, pre_k, pre_v, column_k, column_v,
    d_k_token, d_k_head, d_v_token, d_v_head, sum_token,
    M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr, HEADS: tl.constexpr,
    D_QK: tl.constexpr, D_V: tl.constexpr, P_QK: tl.constexpr, P_V: tl.constexpr,
    BN: tl.constexpr, ROWS: tl.constexpr, SLOPED: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Add up the slices of each sliced block of keys, oldest rows first, and write `d_k` and `d_v`.

    `sums` as `work.key_items`; a program takes ROWS (a divisor of BN) of a block's keys. With SLOPED it writes row
    (block, share) of `column_k` and `column_v`.
    """
    SHARES: tl.constexpr = BN // ROWS
    pid = tl.program_id(0)
    block, head, share = pid // (HEADS * SHARES), pid // SHARES % HEADS, pid % SHARES
    first, begin, n, c, e = entry(sums, block, CONTEXT, TARGETS)
    if first < 0:
        return
    slot, count = tl.load(sums + 8 * block + 5), tl.load(sums + 8 * block + 6)
    stop = key_stop(first, c, e, n, BN, M, CONTEXT, TARGETS)
    sum_k = tl.zeros([ROWS, P_QK], tl.float32)
    sum_v = tl.zeros([ROWS, P_V], tl.float32)
    for i in tl.range(0, count):
        place = ((slot + i) * HEADS + head).to(tl.int64) * BN + share * ROWS
        sum_k += load_rows(part_k + place * D_QK, first * 0, ROWS, D_QK, ROWS, D_QK, P_QK, False)
        sum_v += load_rows(part_v + place * D_V, first * 0, ROWS, D_V, ROWS, D_V, P_V, False)
    shift_k, shift_v = begin * d_k_token + head * d_k_head, begin * d_v_token + head * d_v_head
    start = first + share * ROWS
    if SLOPED:
        column_k += (block * SHARES + share).to(tl.int64) * sum_token + head * D_QK
        column_v += (block * SHARES + share).to(tl.int64) * sum_token + head * D_V
        leave_before_silu(
            sum_k, d_k + shift_k, pre_k + shift_k, column_k, start, stop, d_k_token, ROWS, D_QK, P_QK, FAST
        )
        leave_before_silu(sum_v, d_v + shift_v, pre_v + shift_v, column_v, start, stop, d_v_token, ROWS, D_V, P_V, FAST)
    else:
        store_rows(d_k + shift_k, start, stop, d_k_token, sum_k, ROWS, D_QK, P_QK)
        store_rows(d_v + shift_v, start, stop, d_v_token, sum_v, ROWS, D_V, P_V)


@triton.jit
def _row_tiles(
    items, item, first, stop, c, e, n,
    BM: tl.constexpr, M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr,
):  # fmt: skip
    """Return, for each range of rows that see keys `first:stop`, its tiles in the item's slice (first, whole,
    whole_stop, last), and how many tiles are whole, and how many there are."""
    low, high = tl.load(items + 8 * item + 5) // BM, tl.load(items + 8 * item + 6) // BM
    x, x_stop, x_full, x_full_stop, y, y_stop, y_full, y_full_stop, \
        r, r_stop, r_full, r_full_stop, t, t_stop, t_full, t_full_stop = \
        rows_of_keys(first, stop, c, e, n, M, CONTEXT, TARGETS)  # fmt: skip
    x, x_full, x_full_stop, x_stop = _slice(*tiles_of(x, x_stop, x_full, x_full_stop, 0, BM), low, high)
    y, y_full, y_full_stop, y_stop = _slice(*tiles_of(y, y_stop, y_full, y_full_stop, x_stop, BM), low, high)
    r, r_full, r_full_stop, r_stop = _slice(*tiles_of(r, r_stop, r_full, r_full_stop, y_stop, BM), low, high)
    t, t_full, t_full_stop, t_stop = _slice(*tiles_of(t, t_stop, t_full, t_full_stop, r_stop, BM), low, high)
    whole = x_full_stop - x_full + y_full_stop - y_full + r_full_stop - r_full + t_full_stop - t_full
    count = whole + x_full - x + x_stop - x_full_stop + y_full - y + y_stop - y_full_stop
    count += r_full - r + r_stop - r_full_stop + t_full - t + t_stop - t_full_stop
    return (
        x, x_full, x_full_stop, x_stop, y, y_full, y_full_stop, y_stop,
        r, r_full, r_full_stop, r_stop, t, t_full, t_full_stop, whole, count,
    )  # fmt: skip


@triton.jit
def _row_whole_tile(
    i, x_full, x_full_stop, y_full, y_full_stop, r_full, r_full_stop, t_full,
    M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr,
):  # fmt: skip
    """Return the i-th of the tiles that need no mask."""
    two = x_full_stop - x_full + y_full_stop - y_full
    tile = y_full_stop + i - two
    if CONTEXT:
        tile = pick(i, x_full, x_full_stop - x_full, tile)
    if M.recent > 0:
        tile = tl.where(i < two, tile, r_full + i - two)
    if TARGETS:
        three = two + r_full_stop - r_full
        tile = tl.where(i < three, tile, t_full + i - three)
    return tile


@triton.jit
def _row_edge_tile(
    i, x, x_full, x_full_stop, x_stop, y, y_full, y_full_stop, y_stop,
    r, r_full, r_full_stop, r_stop, t, t_full, t_full_stop,
    M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr,
):  # fmt: skip
    """Return the i-th of the tiles that need a mask: on both sides of each range's whole ones."""
    one = x_full - x
    two = one + x_stop - x_full_stop
    three = two + y_full - y
    tile = tl.where(i < three, y + i - two, y_full_stop + i - three)
    if CONTEXT:
        tile = tl.where(i < two, tl.where(i < one, x + i, x_full_stop + i - one), tile)
    four = three + y_stop - y_full_stop
    five = four + r_full - r
    if M.recent > 0:
        tile = tl.where(i < four, tile, tl.where(i < five, r + i - four, r_full_stop + i - five))
    if TARGETS:
        six = five + r_stop - r_full_stop
        seven = six + t_full - t
        tile = tl.where(i < six, tile, tl.where(i < seven, t + i - six, t_full_stop + i - seven))
    return tile


@triton.jit
def _slice(first, full, full_stop, stop, low, high):
    """Return the part of a range of tiles that lies in `low:high`."""
    first, stop = tl.maximum(first, low), tl.minimum(stop, high)
    stop = tl.maximum(stop, first)
    full = tl.minimum(tl.maximum(full, first), stop)
    full_stop = tl.minimum(tl.maximum(full_stop, full), stop)
    return first, full, full_stop, stop
