# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The kernel that joins the splits of both walks into losses and gradients of the anchors.

The gradient of an anchor is A * (its positives' weighted sum) + B * (its negatives'), where A and B follow from sums
over the whole memory; so the walks need not know them.

Shapes: n anchors, d width, S splits; r anchors of a program.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from longview.ops.memory_loss.triton_sums import NOTHING, UNROLL, join_best, join_powers, log_of
from longview.ops.softmax_loss.triton_tile import INVERSE_LOG2

ROWS = 8
DIMS = 128  # columns of a program
ADDED = tl.constexpr(256)  # losses that are added at a time


@triton.jit
def joined(sums_Sn, row, n, splits):
    """Return the sum over all splits, (r,)."""
    total_r = tl.zeros(row.shape, tl.float32)
    for split in tl.range(0, splits, loop_unroll_factor=UNROLL):
        total_r += tl.load(sums_Sn + split * n + row, mask=row < n, other=0.0)
    return total_r


@triton.jit
def softplus2(t):
    """Return log2(1 + 2^t)."""
    return tl.maximum(t, 0.0) + tl.log2(1 + tl.exp2(-tl.abs(t)))


@triton.jit
def sigmoid2(t):
    """Return 2^t / (1 + 2^t)."""
    low = tl.exp2(-tl.abs(t))
    return tl.where(t > 0, 1.0, low) / (1 + low)


@triton.jit
def over(share, total):
    """Return share / total, 0 where the total is 0."""
    return tl.where(total == 0, 0.0, share / tl.where(total == 0, 1.0, total))


@triton.jit
def summed(
    grads_Snd, tops_Sn, top_r, row, dims, n, splits, POWERS: tl.constexpr, SHARE: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Return the sum of the rows of all slots of SHARE splits, each brought to the common largest exponent with POWERS.

    Splits of a slot have one exponent, or none where they summed nothing.
    """
    inside = (row < n)[:, None] & (dims < WIDTH)[None, :]
    total_rd = tl.zeros([row.shape[0], dims.shape[0]], tl.float32)
    for slot in tl.range(0, tl.cdiv(splits, SHARE), loop_unroll_factor=4):
        place = (slot * n + row).to(tl.int64)[:, None] * WIDTH + dims[None, :]
        part_rd = tl.load(grads_Snd + place, mask=inside, other=0.0)
        if POWERS:
            own_r = tl.full(row.shape, NOTHING, tl.float32)
            for split in tl.static_range(SHARE):
                there = (row < n) & (slot * SHARE + split < splits)
                own_r = tl.maximum(
                    own_r, tl.load(tops_Sn + (slot * SHARE + split) * n + row, mask=there, other=NOTHING)
                )
            part_rd *= tl.exp2(own_r - top_r)[:, None]
        total_rd += part_rd
    return total_rd


@triton.jit
def mass_of(masses_Sn, tops_Sn, top_r, row, n, splits, POWERS: tl.constexpr):
    """Return the sum of all splits' sums of weights, as `summed`."""
    total_r = tl.zeros(row.shape, tl.float32)
    for split in tl.range(0, splits, loop_unroll_factor=UNROLL):
        part_r = tl.load(masses_Sn + split * n + row, mask=row < n, other=0.0)
        if POWERS:
            part_r *= tl.exp2(tl.load(tops_Sn + split * n + row, mask=row < n, other=0.0) - top_r)
        total_r += part_r
    return total_r


@triton.jit
def add_up(losses, value, arrived, n, weight):
    """Write `weight` times the sum of the losses (n,), if all other programs have `arrived` here, which count."""
    tl.debug_barrier()
    if tl.atomic_add(arrived, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        total_r = tl.zeros([ADDED], tl.float32)
        for start in tl.range(0, n, ADDED):
            row = start + tl.arange(0, ADDED)
            total_r += tl.load(losses + row, mask=row < n, other=0.0, cache_modifier=".cg")
        tl.store(value, tl.sum(total_r, 0) * weight)


@triton.jit
def triplet_gradient(row_p, row_n, active, memory, inverses, dims, inside, NORM: tl.constexpr, WIDTH: tl.constexpr):
    """Return the rows of the negatives less those of the positives (r, d), and the sum of their weights (r,)."""
    one_p, one_n = tl.where(active, -1.0, 0.0), tl.where(active, 1.0, 0.0)
    row_p, row_n = tl.where(active, row_p, 0).to(tl.int64), tl.where(active, row_n, 0).to(tl.int64)
    if NORM:
        one_p *= tl.load(inverses + row_p, mask=active, other=0.0)
        one_n *= tl.load(inverses + row_n, mask=active, other=0.0)
    taken = inside & active[:, None]
    m_p = tl.load(memory + row_p[:, None] * WIDTH + dims[None, :], mask=taken, other=0.0).to(tl.float32)
    m_n = tl.load(memory + row_n[:, None] * WIDTH + dims[None, :], mask=taken, other=0.0).to(tl.float32)
    return one_p[:, None] * m_p + one_n[:, None] * m_n, one_p + one_n


@triton.jit(do_not_specialize=["n", "positive_splits", "negative_splits"])
def finish(
    pos_first, pos_second, pos_third, pos_mass, pos_grad, neg_first, neg_second, neg_mass, neg_grad,
    order, memory, inverses, scale, shift, scales, losses, value, arrived, grads,
    n, positive_splits, negative_splits, rate_p, rate_n, margin, sign, weight,
    KIND: tl.constexpr, APART: tl.constexpr, AFFINE: tl.constexpr, NORM: tl.constexpr, SEEN: tl.constexpr,
    POSITIVE_SHARE: tl.constexpr, SHARE: tl.constexpr, TOTAL: tl.constexpr, GRAD: tl.constexpr, EARLY: tl.constexpr,
    ROWS: tl.constexpr, DIMS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write the losses (n,) and `weight` times their gradients (n, d), in the order the anchors came in; with TOTAL
    `weight` times the sum of all losses, too.

    `sign` turns a positive's x into its similarity; `order` (n,) says where the anchors are from. Rows are
    summed as they are stored, with SEEN those of negatives as they are seen; SHARE splits of these, and POSITIVE_SHARE
    of the positives, have one slot of gradients. `arrived` begins as 0.
    """
    if EARLY:
        gdc_wait()
    row, dims = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * DIMS + tl.arange(0, DIMS)
    POSITIVE_POWERS: tl.constexpr = KIND == "multi-similarity" or KIND == "circle"
    NEGATIVE_POWERS: tl.constexpr = KIND != "contrastive" and KIND != "triplet"
    top_p, top_n = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    if KIND == "triplet":
        x_p, row_p = join_best(pos_first, pos_second, row, n, positive_splits)
        x_n, row_n = join_best(neg_first, neg_second, row, n, negative_splits)
        both = (x_p != float("-inf")) & (x_n != float("-inf")) & (row < n)
        over_r = tl.where(both, x_n - x_p * sign + margin, 0.0)
        loss_r = tl.where(over_r <= 0, 0.0, over_r)
        active = over_r > 0
    else:
        if POSITIVE_POWERS:
            top_p, total_p = join_powers(pos_first, pos_second, row, n, positive_splits)
            log_p = log_of(top_p, total_p)
        else:
            sum_p, total_p = joined(pos_first, row, n, positive_splits), joined(pos_second, row, n, positive_splits)
        if NEGATIVE_POWERS:
            top_n, total_n = join_powers(neg_first, neg_second, row, n, negative_splits)
            log_n = log_of(top_n, total_n)
        if KIND == "contrastive":
            a_r, b_r = tl.full([ROWS], -1.0, tl.float32), tl.full([ROWS], 1.0, tl.float32)
            if APART:
                a_r, b_r = -tl.load(scales) + tl.zeros([ROWS], tl.float32), tl.load(scales + 1) + a_r * 0
            loss_r = b_r * joined(neg_first, row, n, negative_splits) - a_r * sum_p
        elif KIND == "multi-similarity":
            loss_r = (softplus2(log_p) * rate_p + softplus2(log_n) * rate_n) * INVERSE_LOG2
            a_r, b_r = -over(sigmoid2(log_p), total_p), over(sigmoid2(log_n), total_n)
        elif KIND == "circle":
            both = (total_p != 0) & (total_n != 0)
            both_r = tl.where(both, log_p + log_n, NOTHING)
            loss_r = tl.where(both, softplus2(both_r), 0.0) * INVERSE_LOG2
            share_r = sigmoid2(both_r) * rate_n
            a_r, b_r = -over(share_r, total_p), over(share_r, total_n)
        elif KIND == "info-nce":
            count_r = joined(pos_third, row, n, positive_splits)
            loss_r = over(sum_p, count_r) * INVERSE_LOG2
            a_r, b_r = over(-rate_n, count_r), over(over(total_p, count_r) * rate_n, total_n)
        else:
            loss_r = tl.where(total_p == 0, 0.0, log_n * INVERSE_LOG2 - over(sum_p, total_p) * rate_n)
            a_r = over(-rate_n, total_p)
            b_r = tl.where(total_p == 0, 0.0, over(rate_n, total_n))
    source = tl.load(order + row, mask=row < n, other=0).to(tl.int64)
    if tl.program_id(1) == 0:
        tl.store(losses + source, loss_r, mask=row < n)
        if TOTAL:
            add_up(losses, value, arrived, n, weight)
    if GRAD:
        inside = (row < n)[:, None] & (dims < WIDTH)[None, :]
        mass_r = tl.zeros([ROWS], tl.float32)
        if KIND == "triplet":
            grad_rd, mass_r = triplet_gradient(row_p, row_n, active, memory, inverses, dims, inside, NORM, WIDTH)
        else:
            pull_rd = summed(
                pos_grad, pos_first, top_p, row, dims, n, positive_splits, POSITIVE_POWERS, POSITIVE_SHARE, WIDTH
            )
            push_rd = summed(neg_grad, neg_first, top_n, row, dims, n, negative_splits, NEGATIVE_POWERS, SHARE, WIDTH)
            grad_rd = a_r[:, None] * pull_rd
            if not SEEN:
                grad_rd += b_r[:, None] * push_rd
            if AFFINE:
                mass_r = a_r * mass_of(pos_mass, pos_first, top_p, row, n, positive_splits, POSITIVE_POWERS)
                if not SEEN:
                    mass_r += b_r * mass_of(neg_mass, neg_first, top_n, row, n, negative_splits, NEGATIVE_POWERS)
        if AFFINE:
            scale_d = tl.load(scale + dims, mask=dims < WIDTH, other=0.0).to(tl.float32)
            shift_d = tl.load(shift + dims, mask=dims < WIDTH, other=0.0).to(tl.float32)
            grad_rd = grad_rd * scale_d[None, :] + mass_r[:, None] * shift_d[None, :]
        if SEEN and KIND != "triplet":
            grad_rd += b_r[:, None] * push_rd
        place = grads + source[:, None] * WIDTH + dims[None, :]
        tl.store(place, (grad_rd * weight).to(grads.dtype.element_ty), mask=inside)
