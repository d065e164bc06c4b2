# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""What a walk sums over one tile of similarities, and how the sums of splits are joined.

x is the similarity, or with a SIGN of -1 less it, so that positives and negatives are one case. `FORM`:

margin  sum of max(0, x - u), and how many are above 0; weight 1 for these
power   largest e and sum of 2^(e - largest) of e = factor (x + u); that power
circle  the same of e = factor max(0, x + u) (x + v); that power times max(0, x + u)
best    largest x and its row, below `given` with LESS; no weight
pull    sum of log2(1 + 2^(given - e)) of e = factor x, of its derivative, and their number; that derivative
mean    sum of x, and their number; 1

Exponents are in units of log 2, where the hardware's exponential lives.

Shapes: n anchors, d width, S splits; r anchors and c rows of the memory in a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longview.ops.memory_loss.triton_match import LEFT_OUT

NOTHING = tl.constexpr(-1e30)  # below every exponent, and finite: a difference of two of it is a number
NO_ROW = tl.constexpr(2147483647)
UNROLL = tl.constexpr(8)  # splits whose sums are asked for at a time
TOO_LARGE = tl.constexpr(1.2e30)  # a sum of powers that says that their exponents were not shifted enough


@triton.jit
def join_powers(tops_Sn, totals_Sn, row, n, splits):
    """Return the largest exponent and the sum of 2^(exponent - largest) over all splits, (r,) each."""
    top_r = tl.full(row.shape, NOTHING, tl.float32)
    for split in tl.range(0, splits, loop_unroll_factor=UNROLL):
        top_r = tl.maximum(top_r, tl.load(tops_Sn + split * n + row, mask=row < n, other=0.0))
    total_r = tl.zeros(row.shape, tl.float32)
    for split in tl.range(0, splits, loop_unroll_factor=UNROLL):
        shrink_r = tl.exp2(tl.load(tops_Sn + split * n + row, mask=row < n, other=0.0) - top_r)
        total_r += tl.load(totals_Sn + split * n + row, mask=row < n, other=0.0) * shrink_r
    return top_r, total_r


@triton.jit
def log_of(top_r, total_r):
    """Return top + log2(total), far below everything where there was nothing to sum."""
    return tl.where(total_r == 0, NOTHING, top_r + tl.log2(tl.where(total_r == 0, 1.0, total_r)))


@triton.jit
def join_best(tops_Sn, rows_Sn, row, n, splits):
    """Return the largest x over all splits and its row of the memory, the first among equals, (r,) each."""
    top_r = tl.full(row.shape, float("-inf"), tl.float32)
    best_r = tl.full(row.shape, NO_ROW, tl.int32)
    for split in tl.range(0, splits, loop_unroll_factor=UNROLL):
        value_r = tl.load(tops_Sn + split * n + row, mask=row < n, other=float("-inf"))
        place_r = tl.load(rows_Sn + split * n + row, mask=row < n, other=NO_ROW)
        better_r = ((value_r <= top_r) == 0) | ((value_r == top_r) & (place_r < best_r))
        top_r, best_r = tl.where(better_r, value_r, top_r), tl.where(better_r, place_r, best_r)
    return top_r, best_r


@triton.jit
def margin_sums(
    x_rc,
    offset_r,
    taken_rc,
    inverse_c,
    first_r,
    second_r,
    u,
    NORM: tl.constexpr,
    SOME: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Return the sums of what is over a margin and of such pairs, with one tile, and the weights of its pairs."""
    if NORM:
        over_rc = x_rc * inverse_c[None, :] - u
    else:
        over_rc = x_rc - (u - offset_r)[:, None]
    if SOME:
        over_rc = tl.where(taken_rc, over_rc, float("-inf"))
    part_rc = tl.maximum(over_rc, 0.0, propagate_nan=tl.PropagateNan.ALL)  # a loss of NaN is seen
    first_r += tl.sum(part_rc, 1)
    weight_rc = tl.where((over_rc <= 0) == 0, 1.0, 0.0)
    if COUNT:
        second_r += tl.sum(weight_rc, 1)
    return first_r, second_r, weight_rc


@triton.jit
def circle_exponents(x_rc, offset_r, taken_rc, factor, u, v, SOME: tl.constexpr):
    """Return the exponents of a circle loss and the factors of its pairs."""
    near_rc = tl.maximum(x_rc + (offset_r + u)[:, None], 0.0)
    e_rc = near_rc * (x_rc + (offset_r + v)[:, None]) * factor
    if SOME:
        e_rc = tl.where(taken_rc, e_rc, float("-inf"))
    else:
        e_rc = tl.where(x_rc != float("-inf"), e_rc, float("-inf"))
    return e_rc, near_rc


@triton.jit
def tile_sums(
    memory_cd, dot_rc, taken_rc, item_c, constant_r, inverse_c, given_r,
    first_r, second_r, third_r, mass_r, grad_rd, factor, u, v,
    FORM: tl.constexpr, SIGN: tl.constexpr, AFFINE: tl.constexpr, NORM: tl.constexpr, LESS: tl.constexpr,
    SOME: tl.constexpr, FIXED: tl.constexpr, COUNT: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """Add one tile to the sums of a form; with NORM `inverse` is 1 / norm of the rows.

    With SOME, only pairs of `taken` count; without, all do. With FIXED the first sum of a power stays what it is,
    whatever the largest exponent.
    """
    x_rc, offset_r = dot_rc, constant_r * SIGN
    if NORM:
        # One multiplication fewer where the norm can wait for the next one.
        x_rc = dot_rc + constant_r[:, None] if AFFINE else dot_rc
        if FORM != "margin" and FORM != "power":
            x_rc *= inverse_c[None, :]
        offset_r = constant_r * 0
    if SIGN < 0:
        x_rc = -x_rc
    shrink_r = tl.full(first_r.shape, 1.0, tl.float32)
    if FORM == "margin":
        first_r, second_r, weight_rc = margin_sums(
            x_rc, offset_r, taken_rc, inverse_c, first_r, second_r, u, NORM, SOME, COUNT
        )
    elif FORM == "power":
        if SOME:
            x_rc = tl.where(taken_rc, x_rc, float("-inf"))
        base_r = (offset_r + u) * factor
        x_rc *= (inverse_c * factor)[None, :] if NORM else factor
        if FIXED == 0:
            higher_r = tl.maximum(first_r, tl.max(x_rc, 1) + base_r)
            shrink_r = tl.exp2(first_r - higher_r)
            second_r *= shrink_r
            first_r = higher_r
        weight_rc = tl.exp2(x_rc + (base_r - first_r)[:, None])
        second_r += tl.sum(weight_rc, 1)
    elif FORM == "circle":
        e_rc, near_rc = circle_exponents(x_rc, offset_r, taken_rc, factor, u, v, SOME)
        if FIXED == 0:
            higher_r = tl.maximum(first_r, tl.max(e_rc, 1))
            shrink_r = tl.exp2(first_r - higher_r)
            second_r *= shrink_r
            first_r = higher_r
        power_rc = tl.exp2(e_rc - first_r[:, None])
        second_r += tl.sum(power_rc, 1)
        weight_rc = power_rc * near_rc
    elif FORM == "best":
        x_rc += offset_r[:, None]
        if SOME:
            x_rc = tl.where(taken_rc, x_rc, float("-inf"))
        if LESS:
            x_rc = tl.where(x_rc < given_r[:, None], x_rc, float("-inf"))
        value_r = tl.max(x_rc, 1)
        place_r = tl.min(tl.where(x_rc == value_r[:, None], item_c[None, :], NO_ROW), 1)
        better_r = (value_r <= first_r) == 0  # NaN is better: it is seen
        first_r, second_r = tl.where(better_r, value_r, first_r), tl.where(better_r, place_r, second_r)
        weight_rc = x_rc
    elif FORM == "pull":
        apart_rc = (given_r - offset_r * factor)[:, None] - x_rc * factor
        loss_rc = tl.maximum(apart_rc, 0.0) + tl.log2(1 + tl.exp2(-tl.abs(apart_rc)))
        weight_rc = tl.exp2(apart_rc - loss_rc)
        if SOME:
            loss_rc, weight_rc = tl.where(taken_rc, loss_rc, 0.0), tl.where(taken_rc, weight_rc, 0.0)
        first_r += tl.sum(loss_rc, 1)
        second_r += tl.sum(weight_rc, 1)
        third_r += tl.sum(tl.where(taken_rc, 1.0, 0.0), 1)
    else:
        # 1 made of x, so that the compiler leaves it in the registers of x.
        weight_rc = tl.where(taken_rc, x_rc * 0.0 + 1.0, 0.0)
        count_r = tl.sum(weight_rc, 1)
        first_r += tl.sum(tl.where(taken_rc, x_rc, 0.0), 1) + count_r * offset_r
        second_r += count_r
    if GRAD:
        if NORM:
            weight_rc *= inverse_c[None, :]
        if AFFINE:
            mass_r = mass_r * shrink_r + tl.sum(weight_rc, 1)
        if (FORM == "power" or FORM == "circle") and FIXED == 0:
            grad_rd *= shrink_r[:, None]
        grad_rd = tl.dot(weight_rc.to(memory_cd.dtype), memory_cd, grad_rd, input_precision="ieee")
    return first_r, second_r, third_r, mass_r, grad_rd


@triton.jit
def pairs_of(
    own_code_r,
    code_c,
    own_id_r,
    id_c,
    own_row_r,
    item_c,
    PAIRS: tl.constexpr,
    IDS: tl.constexpr,
    ROWS_OUT: tl.constexpr,
):
    """Return which pairs of a tile count, (r, c)."""
    if PAIRS == "positive":
        taken_rc = own_code_r[:, None] == code_c[None, :]
    elif PAIRS == "negative":
        taken_rc = (own_code_r[:, None] != code_c[None, :]) & (code_c > LEFT_OUT)[None, :]
    else:
        taken_rc = (own_code_r > LEFT_OUT)[:, None] & (code_c > LEFT_OUT)[None, :]
    if IDS:
        taken_rc = taken_rc & (own_id_r[:, None] != id_c[None, :])
    if ROWS_OUT:
        taken_rc = taken_rc & (own_row_r[:, None] != item_c[None, :])
    return taken_rc
