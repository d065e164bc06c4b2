# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The kernels of `drift_filter`; their equations are those of `metric_learning.moments` and `metric_learning.kalman`.

What is kept is one vector: moments, error, gain and the batch's own moments, (2, d) each; with WEIGHED the surprise
(2, d), what of the last was confirmed (2, d) and surprises squared (2, d). The drift (2,) is kept apart.

Shapes: b rows, d WIDTH; r anchors and e dimensions of a program.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

TINY = tl.constexpr(1e-30)
LARGEST = tl.constexpr(3.0e38)


@triton.jit(do_not_specialize=["b"])
def sum_batch(
    values, labels, kept, sums,
    b, floor,
    SAMPLED: tl.constexpr, EARLY: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write the batch's own moments; with SAMPLED, for a block of anchors, the squared sums of their classes.

    `sums` (blocks, 2d + 1): of the rows less their mean, of their squares less the variance, and classes. A class's
    sum is met once a row of it, hence the weights. With EARLY the next kernel may begin meanwhile.
    """
    if EARLY:
        gdc_launch_dependents()
    dims = tl.program_id(1) * DIMS + tl.arange(0, DIMS)
    inside = dims < WIDTH
    total_e = tl.zeros([DIMS], tl.float32)
    for start in tl.range(0, b, ROWS):
        row = start + tl.arange(0, ROWS)
        place = row.to(tl.int64)[:, None] * WIDTH + dims[None, :]
        total_e += tl.sum(tl.load(values + place, mask=(row < b)[:, None] & inside[None, :], other=0.0), 0)
    mean_e = tl.div_rn(total_e, b.to(tl.float32))
    total_e = tl.zeros([DIMS], tl.float32)
    for start in tl.range(0, b, ROWS):
        row = start + tl.arange(0, ROWS)
        taken = (row < b)[:, None] & inside[None, :]
        x_re = tl.load(values + row.to(tl.int64)[:, None] * WIDTH + dims[None, :], mask=taken, other=0.0)
        away_re = tl.where(taken, x_re - mean_e[None, :], 0.0)
        total_e += tl.sum(away_re * away_re, 0)
    variance_e = tl.div_rn(total_e, b.to(tl.float32))
    if tl.program_id(0) == 0:
        own = kept + 6 * WIDTH + dims
        tl.store(own, mean_e, mask=inside)
        tl.store(own + WIDTH, tl.maximum(tl.sqrt_rn(variance_e), floor), mask=inside)
    if SAMPLED:
        anchor = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        label_r = tl.load(labels + anchor, mask=anchor < b, other=0)
        first_re, second_re = tl.zeros([ROWS, DIMS], tl.float32), tl.zeros([ROWS, DIMS], tl.float32)
        count_r = tl.zeros([ROWS], tl.float32)
        for start in tl.range(0, b, ROWS):
            row = start + tl.arange(0, ROWS)
            taken = (row < b)[:, None] & inside[None, :]
            x_re = tl.load(values + row.to(tl.int64)[:, None] * WIDTH + dims[None, :], mask=taken, other=0.0)
            away_re = tl.where(taken, x_re - mean_e[None, :], 0.0)
            square_re = tl.where(taken, away_re * away_re - variance_e[None, :], 0.0)
            other_c = tl.load(labels + row, mask=row < b, other=0)
            same_rc = ((label_r[:, None] == other_c[None, :]) & (row < b)[None, :]).to(tl.float32)
            first_re = tl.dot(same_rc, away_re, first_re, input_precision="ieee")
            second_re = tl.dot(same_rc, square_re, second_re, input_precision="ieee")
            count_r += tl.sum(same_rc, 1)
        weight_r = tl.where(anchor < b, 1 / tl.maximum(count_r, 1.0), 0.0)
        here = sums + tl.program_id(0) * (2 * WIDTH + 1)
        tl.store(here + dims, tl.sum(weight_r[:, None] * first_re * first_re, 0), mask=inside)
        tl.store(here + WIDTH + dims, tl.sum(weight_r[:, None] * second_re * second_re, 0), mask=inside)
        if tl.program_id(1) == 0:
            tl.store(here + 2 * WIDTH, tl.sum(weight_r, 0))


@triton.jit
def pooled(x_d, inside, SHARED: tl.constexpr, WIDTH: tl.constexpr):
    """Return `x_d`, or its mean over dimensions in each of them where these share a gain."""
    if SHARED:
        return tl.zeros_like(x_d) + tl.div_rn(tl.sum(tl.where(inside, x_d, 0.0), 0), WIDTH * 1.0)
    return x_d


@triton.jit
def between(a, b, weight):
    """Return a + weight * (b - a), exactly b for a weight of 1."""
    return tl.where(weight < 0.5, a + weight * (b - a), b - (b - a) * (1 - weight))


@triton.jit
def kalman(old_d, new_d, error_d, drift, scale_d, noise_d, inside, rate, LEARNED: tl.constexpr, WIDTH: tl.constexpr):
    """Return the moments, error and gain (d,) and the drift after an observation."""
    before_d = error_d + tl.maximum(drift, 0.0)
    gain_d = tl.div_rn(before_d, before_d + noise_d)
    gain_d = tl.where(gain_d == gain_d, gain_d, 1.0)  # 0 / 0: nothing known and nothing unsure
    if LEARNED:
        away_d = new_d - old_d
        surprise_d = tl.div_rn(away_d * away_d, scale_d) - error_d - noise_d
        surprise = tl.div_rn(tl.sum(tl.where(inside, surprise_d, 0.0), 0), WIDTH * 1.0)
        drift = tl.where(tl.abs(surprise) < LARGEST, between(drift, surprise, rate), drift)
    return between(old_d, new_d, gain_d), (1 - gain_d) * before_d, gain_d, drift


@triton.jit
def weigh(
    surprise_d, gain_d, scale_d, surprise, evidence, kept, dims, inside, first, rate,
    SHARED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Return error and gain (d,) and the drift where innovations tell both noises, and write what they told.

    surprise, evidence: the state's, from this moment on (the mean's, or d further the standard deviation's).
    """
    then_d = tl.load(surprise + dims, mask=inside, other=0.0)
    confirmed_d = tl.load(evidence + dims, mask=inside, other=0.0)
    squares_d = tl.load(evidence + 2 * WIDTH + dims, mask=inside, other=0.0)
    start_d = tl.div_rn(pooled(surprise_d * surprise_d, inside, SHARED, WIDTH), scale_d)
    new_d = tl.div_rn(pooled((surprise_d + gain_d * then_d) * then_d, inside, SHARED, WIDTH), scale_d)
    square_d = tl.div_rn(pooled(then_d * then_d, inside, SHARED, WIDTH), scale_d)
    known = squares_d > 0
    confirmed_d = tl.where(known, between(confirmed_d, new_d, rate), start_d)
    squares_d = tl.where(known, between(squares_d, square_d, rate), start_d)
    share_d = tl.div_rn(confirmed_d, squares_d)
    share_d = tl.where(share_d == share_d, share_d, 1.0)  # 0 / 0: nothing moves, no batch differs
    share_d = tl.minimum(tl.maximum(share_d, 0.0), 1.0)
    before_d = share_d * squares_d
    drift = tl.div_rn(tl.sum(tl.where(inside, share_d * before_d, 0.0), 0), WIDTH * 1.0)
    if first:
        here = kept + 8 * WIDTH + dims
        tl.store(here, surprise_d, mask=inside)
        tl.store(here + 2 * WIDTH, confirmed_d, mask=inside)
        tl.store(here + 4 * WIDTH, squares_d, mask=inside)
    return before_d - share_d * before_d, share_d, drift


@triton.jit
def sampled_noise(
    sums, variance_d, scale_mean_d, scale_std_d, dims, inside, b, blocks,
    SQUARED: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Return the noise of both moments (d,) that follows from the classes of a batch, infinite for one class."""
    noise_mean_d, noise_std_d = tl.zeros_like(variance_d), tl.zeros_like(variance_d)
    classes = 0.0
    for block in tl.range(0, blocks):
        here = sums + block * (2 * WIDTH + 1)
        noise_mean_d += tl.load(here + dims, mask=inside, other=0.0)
        noise_std_d += tl.load(here + WIDTH + dims, mask=inside, other=0.0)
        classes += tl.load(here + 2 * WIDTH)
    classes = tl.floor(classes + 0.5)  # 1/3 + 1/3 + 1/3 is one class
    number = b.to(tl.float32)
    factor = tl.div_rn(classes, tl.maximum(classes - 1, 1.0) * number * number)
    noise_mean_d = tl.where(classes > 1, noise_mean_d * factor, float("inf"))
    noise_std_d = tl.where(classes > 1, noise_std_d * factor, float("inf"))
    if not SQUARED:  # the delta rule, d(sigma) = d(variance) / (2 sigma)
        noise_std_d = tl.div_rn(noise_std_d, tl.maximum(4 * variance_d, TINY))
    noise_mean_d = tl.div_rn(pooled(noise_mean_d, inside, SHARED, WIDTH), scale_mean_d)
    return noise_mean_d, tl.div_rn(pooled(noise_std_d, inside, SHARED, WIDTH), scale_std_d)


@triton.jit(do_not_specialize=["b", "blocks"])
def filter_moments(
    values, sums, moments, error, gain, surprise, evidence, drift, kept, kept_drift, stored,
    b, blocks, noise, rate,
    KIND: tl.constexpr, ANCHOR: tl.constexpr, SQUARED: tl.constexpr, SHARED: tl.constexpr,
    SAMPLED: tl.constexpr, LEARNED: tl.constexpr, WEIGHED: tl.constexpr, EARLY: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Write the state after the batch, and a block of its rows standardised; every program computes the same state.

    With EARLY it begins while `sum_batch` ends, and waits for it.
    """
    if EARLY:
        gdc_wait()
    dims = tl.arange(0, PADDED)
    inside = dims < WIDTH
    own_mean_d = tl.load(kept + 6 * WIDTH + dims, mask=inside, other=0.0)
    own_std_d = tl.load(kept + 7 * WIDTH + dims, mask=inside, other=1.0)
    mean_d, std_d = own_mean_d, own_std_d
    old_mean_d = tl.load(moments + dims, mask=inside, other=0.0)
    old_std_d = tl.load(moments + WIDTH + dims, mask=inside, other=1.0)
    error_mean_d = tl.load(error + dims, mask=inside, other=0.0)
    error_std_d = tl.load(error + WIDTH + dims, mask=inside, other=0.0)
    gain_mean_d, gain_std_d = tl.full([PADDED], 1.0, tl.float32), tl.full([PADDED], 1.0, tl.float32)
    drift_mean, drift_std = tl.load(drift), tl.load(drift + 1)
    if KIND == "moving-average":
        gain_mean_d, gain_std_d = gain_mean_d * rate, gain_std_d * rate
        mean_d, std_d = between(old_mean_d, own_mean_d, gain_mean_d), between(old_std_d, own_std_d, gain_std_d)
    if KIND == "axbn":
        variance_d = own_std_d * own_std_d
        square_d = variance_d * variance_d if SQUARED else variance_d
        scale_mean_d = tl.maximum(pooled(variance_d, inside, SHARED, WIDTH), TINY)
        scale_std_d = tl.maximum(pooled(square_d, inside, SHARED, WIDTH), TINY)
        if SAMPLED:
            noise_mean_d, noise_std_d = sampled_noise(
                sums, variance_d, scale_mean_d, scale_std_d, dims, inside, b, blocks, SQUARED, SHARED, WIDTH
            )
        else:
            noise_mean_d, noise_std_d = tl.zeros([PADDED], tl.float32) + noise, tl.zeros([PADDED], tl.float32) + noise
        old_d = old_std_d * old_std_d if SQUARED else old_std_d
        new_d = variance_d if SQUARED else own_std_d
        if WEIGHED:
            gain_mean_d = tl.load(gain + dims, mask=inside, other=1.0)
            gain_std_d = tl.load(gain + WIDTH + dims, mask=inside, other=1.0)
            first = tl.program_id(0) == 0
            error_mean_d, gain_mean_d, drift_mean = weigh(
                own_mean_d - old_mean_d, gain_mean_d, scale_mean_d, surprise, evidence, kept,
                dims, inside, first, rate, SHARED, WIDTH,
            )  # fmt: skip
            error_std_d, gain_std_d, drift_std = weigh(
                new_d - old_d, gain_std_d, scale_std_d, surprise + WIDTH, evidence + WIDTH, kept + WIDTH,
                dims, inside, first, rate, SHARED, WIDTH,
            )  # fmt: skip
            mean_d, std_d = between(old_mean_d, own_mean_d, gain_mean_d), between(old_d, new_d, gain_std_d)
        else:
            mean_d, error_mean_d, gain_mean_d, drift_mean = kalman(
                old_mean_d, own_mean_d, error_mean_d, drift_mean, scale_mean_d, noise_mean_d, inside, rate,
                LEARNED, WIDTH,
            )  # fmt: skip
            std_d, error_std_d, gain_std_d, drift_std = kalman(
                old_d, new_d, error_std_d, drift_std, scale_std_d, noise_std_d, inside, rate, LEARNED, WIDTH
            )
        if SQUARED:  # with a gain of 1, sigma is the batch's bit for bit
            std_d = tl.where(gain_std_d == 1, own_std_d, tl.sqrt_rn(std_d))
    if tl.program_id(0) == 0:
        tl.store(kept + dims, mean_d, mask=inside)
        tl.store(kept + WIDTH + dims, std_d, mask=inside)
        tl.store(kept + 2 * WIDTH + dims, error_mean_d, mask=inside)
        tl.store(kept + 3 * WIDTH + dims, error_std_d, mask=inside)
        tl.store(kept + 4 * WIDTH + dims, gain_mean_d, mask=inside)
        tl.store(kept + 5 * WIDTH + dims, gain_std_d, mask=inside)
        tl.store(kept_drift, drift_mean)
        tl.store(kept_drift + 1, drift_std)
    if ANCHOR != "memory":
        if ANCHOR == "batch":
            mean_d, std_d = own_mean_d, own_std_d
        start, row = tl.program_id(0) * ROWS, tl.arange(0, ROWS)
        taken = (start + row < b)[:, None] & inside[None, :]
        begin = start.to(tl.int64) * WIDTH  # within the block, 32 bits tell the place
        place = row[:, None] * WIDTH + dims[None, :]
        x_rd = tl.load(values + begin + place, mask=taken, other=0.0)
        standard_rd = tl.div_rn(x_rd - mean_d[None, :], tl.zeros_like(x_rd) + std_d[None, :])
        tl.store(stored + begin + place, standard_rd.to(stored.dtype.element_ty), mask=taken)
