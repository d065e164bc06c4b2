# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The backward kernel of d_q, by blocks of rows; `triton_backward_keys.py` has that of d_k and d_v, by blocks of keys.

The scores are computed again in both.

    dV_j = 1/S sum_i M_ij silu(z_ij) dO_i          G_ij = M_ij <dO_i, v_j> silu'(z_ij)
    dQ_i = alpha/S sum_j G_ij k_j                  dK_j = alpha/S sum_i G_ij q_i

Sums are float32 in registers, in a fixed order: the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longview.ops.attention.triton_bias import add_bias, collect_position, collect_time
from longview.ops.attention.triton_forward import column_tiles, edge_tile
from longview.ops.attention.triton_mask import pick, row_stop, visible
from longview.ops.attention.triton_tile import (
    entry,
    entry_again,
    fetch_rows,
    leave_before_silu,
    load_rows,
    program_again,
    silu_and_slope,
    store_rows,
)


@triton.jit
def attention_backward_rows(
    q, k, v, d_out, d_q, items, position, time, stamps, part_position, part_time, slant, pre_q, column_q,
    q_token, q_head, k_token, k_head, v_token, v_head, d_out_token, d_out_head, d_q_token, d_q_head,
    half_alpha, scale, sum_token,
    M: tl.constexpr, CONTEXT: tl.constexpr, TARGETS: tl.constexpr,
    HEADS: tl.constexpr, D_QK: tl.constexpr, D_V: tl.constexpr, P_QK: tl.constexpr, P_V: tl.constexpr,
    P: tl.constexpr, B: tl.constexpr, PADDED: tl.constexpr, SLOPED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, JOINED: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write `d_q`, and this program's share of the bias gradients; arguments as in `attention_forward`.

    `part_position` (programs, P), zero at first, `part_time` (programs, B), and `slant` (programs, BM, 2 max(BM, BN)),
    memory to work in, are float32. PADDED is B rounded up to a power of two. With SLOPED q is SiLU(`pre_q`), laid out
    like `d_q`, which gets the gradient before SiLU; row `item` of `column_q` gets the sum over the block's rows.
    """
    item, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    first, begin, n, c, e = entry(items, item, CONTEXT, TARGETS)
    if first < 0:
        return
    stop = row_stop(first, c, e, n, BM, M, CONTEXT, TARGETS)
    q += begin * q_token + head * q_head
    k += begin * k_token + head * k_head
    v += begin * v_token + head * v_head
    d_out += begin * d_out_token + head * d_out_head
    grads = d_q + (begin * d_q_token + head * d_q_head)
    stamps += begin
    time_sum = tl.zeros([PADDED], tl.float32)
    a, a_full, a_full_stop, a_stop, b, b_full, b_full_stop, b_stop, g, g_stop = column_tiles(
        first, stop, c, e, n, BN, M, CONTEXT, TARGETS
    )
    whole = a_full_stop - a_full + b_full_stop - b_full
    count = whole + a_full - a + a_stop - a_full_stop + b_full - b + b_stop - b_full_stop + g_stop - g

    if SLOPED and FAST:
        fetch_rows(pre_q + begin * d_q_token + head * d_q_head, first, stop, d_q_token, BM, D_QK)
    q_MD = load_rows(q, first, stop, q_token, BM, D_QK, P_QK, True)
    d_out_MD = load_rows(d_out, first, stop, d_out_token, BM, D_V, P_V, True)
    sum_MD = tl.zeros([BM, P_QK], tl.float32)
    rows = first + tl.arange(0, BM)
    if not JOINED:
        for i in tl.range(0, whole):
            at = pick(i, a_full, a_full_stop - a_full, b_full + i - (a_full_stop - a_full)) * BN
            k_ND = load_rows(k, at, n, k_token, BN, D_QK, P_QK, False)
            v_ND = load_rows(v, at, n, v_token, BN, D_V, P_V, False)
            weight_MN, d_z_MN = of_tile(
                q_MD, k_ND, d_out_MD, v_ND, rows, at + tl.arange(0, BN), n, head, half_alpha,
                position, time, stamps, P, B, FAST, PRECISION,
            )  # fmt: skip
            if P > 0:
                collect_position(d_z_MN, first, at, slant, part_position, P, BM, BN, FAST)
            if B > 0:
                time_sum = collect_time(time_sum, d_z_MN, rows, at + tl.arange(0, BN), n, stamps, B, PADDED)
            sum_MD = tl.dot(d_z_MN.to(k_ND.dtype), k_ND, sum_MD, input_precision=PRECISION)
    for i in tl.range(0 if JOINED else whole, count):
        tile = edge_tile(i - whole, a, a_full, a_full_stop, a_stop, b, b_full, b_full_stop, b_stop, g, TARGETS)
        if JOINED:
            inner = pick(i, a_full, a_full_stop - a_full, b_full + i - (a_full_stop - a_full))
            tile = tl.where(i < whole, inner, tile)
        at = tile * BN
        k_ND = load_rows(k, at, n, k_token, BN, D_QK, P_QK, True)
        v_ND = load_rows(v, at, n, v_token, BN, D_V, P_V, True)
        columns = at + tl.arange(0, BN)
        weight_MN, d_z_MN = of_tile(
            q_MD, k_ND, d_out_MD, v_ND, rows, columns, n, head, half_alpha,
            position, time, stamps, P, B, FAST, PRECISION,
        )  # fmt: skip
        if i >= whole:
            seen_MN = visible(rows[:, None], columns[None, :], c, e, n, M, CONTEXT, TARGETS)
            d_z_MN = tl.where(seen_MN, d_z_MN, 0.0)
        if P > 0:
            collect_position(d_z_MN, first, at, slant, part_position, P, BM, BN, FAST)
        if B > 0:
            time_sum = collect_time(time_sum, d_z_MN, rows, columns, n, stamps, B, PADDED)
        sum_MD = tl.dot(d_z_MN.to(k_ND.dtype), k_ND, sum_MD, input_precision=PRECISION)
    program = tl.program_id(0)
    if P + B > 0:  # found out (again) only now: with a bias every register is taken through the loops
        program = program_again(FAST)
        item, head = program // HEADS, program % HEADS
        first, begin, n, c, e = entry_again(items, item, CONTEXT, TARGETS)
        stop = row_stop(first, c, e, n, BM, M, CONTEXT, TARGETS)
        grads = d_q + (begin * d_q_token + head * d_q_head)
    sum_MD *= 2 * half_alpha * scale
    if SLOPED:
        pre_q += begin * d_q_token + head * d_q_head
        column_q += item.to(tl.int64) * sum_token + head * D_QK
        leave_before_silu(sum_MD, grads, pre_q, column_q, first, stop, d_q_token, BM, D_QK, P_QK, FAST)
    else:
        store_rows(grads, first, stop, d_q_token, sum_MD, BM, D_QK, P_QK)
    if B > 0:
        slots = tl.arange(0, PADDED)
        tl.store(part_time + program.to(tl.int64) * B + slots, time_sum, mask=slots < B)


@triton.jit
def of_tile(
    a, b, x, y, left, right, n, head, half_alpha, position, time, stamps,
    P: tl.constexpr, B: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the weights of a tile and the gradients of its scores (without alpha), from a and b = q and k of rows and
    keys, x and y = dO and v of them: rows by keys, or with both pairs turned round keys by rows."""
    z = tl.dot(a, b.T, input_precision=PRECISION) * half_alpha
    if P + B > 0:
        z = add_bias(z, left, right, n, head, position, time, stamps, P, B)
    d_weight = tl.dot(x, y.T, input_precision=PRECISION)
    weight, slope = silu_and_slope(z, FAST)
    return weight, d_weight * slope
