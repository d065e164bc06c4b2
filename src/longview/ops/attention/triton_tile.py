# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Arithmetic of one tile of scores inside a kernel, and the loads that feed it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def entry(items, item, CONTEXT: tl.constexpr, TARGETS: tl.constexpr):
    """Return what an entry of `work.py` begins with: first token, begin (int64), length, context and history end."""
    at = items + 8 * item
    n = tl.load(at + 2)
    c, e = n * 0, n
    if CONTEXT:
        c = tl.load(at + 3)
    if TARGETS:
        e = tl.load(at + 4)
    return tl.load(at), tl.load(at + 1).to(tl.int64), n, c, e


@triton.jit
def entry_again(items, item, CONTEXT: tl.constexpr, TARGETS: tl.constexpr):
    """Return what `entry` does by reads that no earlier ones stand for, so that nothing is kept meanwhile."""
    at = items + 8 * item
    n = tl.load(at + 2, volatile=True)
    c, e = n * 0, n
    if CONTEXT:
        c = tl.load(at + 3, volatile=True)
    if TARGETS:
        e = tl.load(at + 4, volatile=True)
    return tl.load(at, volatile=True), tl.load(at + 1, volatile=True).to(tl.int64), n, c, e


@triton.jit
def program_again(FAST: tl.constexpr):
    """Return the program's number, read from the hardware and not from a register that held it all along."""
    if FAST:
        number = tl.inline_asm_elementwise("mov.u32 $0, %ctaid.x;", "=r,r", [0], dtype=tl.int32, is_pure=False, pack=1)
    else:
        number = tl.program_id(0)
    return number


@triton.jit
def tanh(x):
    """The hardware's tanh (one operation, relative error about 2^-11); float32 in and out."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def silu(half_z, FAST: tl.constexpr):
    """Return SiLU(z) of z / 2. SiLU(z) = y tanh(y) + y with y = z / 2: one special function instead of two."""
    if FAST:
        found = half_z * tanh(half_z) + half_z
    else:
        z = half_z * 2
        found = z / (1 + tl.exp(-z))
    return found


@triton.jit
def silu_and_slope(half_z, FAST: tl.constexpr):
    """Return SiLU(z) and its derivative s + SiLU(z) (1 - s), s = sigmoid(z), of z / 2."""
    if FAST:
        t = tanh(half_z)
        weight = half_z * t + half_z
        s = t * 0.5 + 0.5
    else:
        z = half_z * 2
        s = 1 / (1 + tl.exp(-z))
        weight = z * s
    return weight, weight * (1 - s) + s


@triton.jit
def load_rows(
    base, first, stop, stride, ROWS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, CHECK: tl.constexpr
):
    """Return rows `first:first + ROWS` (ROWS, PADDED) of a head; with CHECK zeros from `stop` on.

    Zeros, because the next token belongs to another sequence, and a NaN there must not spread.
    """
    rows, dims = tl.arange(0, ROWS), tl.arange(0, PADDED)
    pointers = (base + first.to(tl.int64) * stride) + (rows[:, None] * stride + dims[None, :])
    if CHECK:
        inside = first + rows[:, None] < stop
        if DIM < PADDED:
            inside &= dims[None, :] < DIM
        found = tl.load(pointers, mask=inside, other=0.0)
    elif DIM < PADDED:
        found = tl.load(pointers, mask=dims[None, :] < DIM, other=0.0)
    else:
        found = tl.load(pointers)
    return found


@triton.jit
def store_rows(base, first, stop, stride, values, ROWS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr):
    """Write `values` (ROWS, PADDED) to rows `first:stop` of a head, in the dtype that is there."""
    rows, dims = tl.arange(0, ROWS), tl.arange(0, PADDED)
    pointers = (base + first.to(tl.int64) * stride) + (rows[:, None] * stride + dims[None, :])
    inside = first + rows[:, None] < stop
    if DIM < PADDED:
        inside &= dims[None, :] < DIM
    tl.store(pointers, values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def before_silu(
    grads, pre, first, stop, stride, ROWS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, FAST: tl.constexpr
):
    """Return the gradients (ROWS, PADDED) of SiLU's input, whose rows `first:stop` are at `pre`, from its output's."""
    half = load_rows(pre, first, stop, stride, ROWS, DIM, PADDED, True).to(tl.float32) * 0.5
    value, slope = silu_and_slope(half, FAST)
    return grads * slope


@triton.jit
def leave_before_silu(
    sums, grads, pre, column, first, stop, stride,
    ROWS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Write to `grads` what `before_silu` gives for `sums` (ROWS, PADDED), and to `column` (DIM,) its sum over rows.

    What is added up is what is written: so little passes through shared memory, whose layout stores want.
    """
    low = before_silu(sums, pre, first, stop, stride, ROWS, DIM, PADDED, FAST).to(grads.dtype.element_ty)
    store_rows(grads, first, stop, stride, low, ROWS, DIM, PADDED)
    store_sum(column, low.to(tl.float32), DIM, PADDED)


@triton.jit
def fetch_rows(base, first, stop, stride, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Have 16-bit rows `first:stop` on their way into the cache when the end of a program asks for them."""
    LINES: tl.constexpr = (DIM + 63) // 64  # of 128 bytes
    rows = tl.minimum(first + tl.arange(0, ROWS), stop - 1).to(tl.int64)
    pointers = (base + rows * stride)[:, None] + 64 * tl.arange(0, triton.next_power_of_2(LINES))[None, :] % DIM
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [pointers.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def store_sum(base, values, DIM: tl.constexpr, PADDED: tl.constexpr):
    """Write the sum over the rows of `values` (rows, PADDED)."""
    dims = tl.arange(0, PADDED)
    tl.store(base + dims, tl.sum(values, 0), mask=dims < DIM)
