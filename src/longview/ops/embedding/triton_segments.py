# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Kernels that sum the gradient rows of each id and, in the same pass, do with the sum what RULE says.

Segments of up to LIMIT lookups are summed by one program, several at a time. Longer ones, the popular items, are cut
at multiples of LIMIT sorted lookups: `sum_pieces` sums the pieces, `sum_long` joins them in order. Every sum is float32
and has one order, so that bits depend neither on the run nor on the device.

Shapes: s segments of a program, r rows read at a time, D width padded to a power of two.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

LIMIT = 256  # lookups a program sums in sequence
WARPS = 8

PUT = tl.constexpr(0)  # write the sum to the row of `table`
ADAGRAD = tl.constexpr(1)  # row-wise AdaGrad; `first` (V,) float32
ADAMW = tl.constexpr(2)  # AdamW of touched rows; `first` and `second` (V, D) float32
SQUARE = tl.constexpr(3)  # write the squared norm of the sum to `first` (V,) float32, and leave the table alone


def segments_at_once(padded: int) -> int:
    """Return how many segments a program of `sum_short` takes: 4 kB of sums at most, and 16 of them."""
    return max(1, min(16, 1024 // padded))


def rows_at_once(padded: int) -> int:
    """Return how many rows of a long segment are read at a time: what keeps two such tiles in registers."""
    return max(2, min(16, 2048 // padded))


@triton.jit
def round_stochastically(values, row, dims, seed, step):
    """Return float32 values rounded to a bfloat16 neighbour, up as often as they are near it; still float32.

    Random bits are Philox4x32-7 at the counter (column, row, step), so they depend on nothing else.
    """
    column = dims + tl.zeros_like(values).to(tl.int32)
    low = row.to(tl.int32) + tl.zeros_like(column)
    high = (row >> 32).to(tl.int32) + tl.zeros_like(column)
    noise, _, _, _ = tl.philox(seed, column, low, high, step + tl.zeros_like(column), 7)
    bits = values.to(tl.uint32, bitcast=True)
    rounded = ((bits + (noise & 0xFFFF)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    return tl.where(finite, rounded, values)


@triton.jit
def apply_rule(
    sum_sD, row_s, live_s, table, first, second,
    now, steps, eps, beta1, beta2, decay, seed,
    RULE: tl.constexpr, STOCHASTIC: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Do what RULE says with the sums (s, D) of the rows `row_s` where `live_s`.

    `now` (3,) float32 are rate and bias corrections of this step, number `steps` (1,); they change from step to step,
    and a captured step reads them anew.
    """
    dims = tl.arange(0, PADDED)[None, :]
    row = row_s.to(tl.int64)[:, None]
    inside = live_s[:, None] & (dims < WIDTH)
    place = row * WIDTH + dims
    found = sum_sD
    if RULE == SQUARE:
        tl.store(first + row_s, tl.sum(sum_sD * sum_sD, 1), mask=live_s)
    if RULE != PUT and RULE != SQUARE:
        rate, correction1, correction2 = tl.load(now), tl.load(now + 1), tl.load(now + 2)
        weight_sD = tl.load(table + place, mask=inside, other=0.0).to(tl.float32)
    if RULE == ADAGRAD:
        square_s = tl.load(first + row_s, mask=live_s, other=0.0) + tl.sum(sum_sD * sum_sD, 1) / WIDTH
        tl.store(first + row_s, square_s, mask=live_s)
        found = weight_sD - rate * sum_sD / (tl.sqrt(square_s) + eps)[:, None]
    if RULE == ADAMW:
        first_sD = tl.load(first + place, mask=inside, other=0.0)
        first_sD += (1 - beta1) * (sum_sD - first_sD)
        tl.store(first + place, first_sD, mask=inside)
        second_sD = tl.load(second + place, mask=inside, other=0.0)
        second_sD += (1 - beta2) * (sum_sD * sum_sD - second_sD)
        tl.store(second + place, second_sD, mask=inside)
        spread_sD = tl.sqrt(second_sD / correction2) + eps
        found = weight_sD * (1 - rate * decay) - rate * (first_sD / correction1) / spread_sD
    if STOCHASTIC:
        found = round_stochastically(found, row, dims, seed, tl.load(steps).to(tl.int32))
    if RULE != SQUARE:
        tl.store(table + place, found.to(table.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["seed", "limit"])
def sum_short(
    grads, order, unique, offsets, count, table, first, second,
    now, steps, eps, beta1, beta2, decay, seed, limit,
    RULE: tl.constexpr, STOCHASTIC: tl.constexpr, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Sum SEGMENTS segments of up to `limit` lookups each, and apply RULE to the sums."""
    segment = tl.program_id(0) * SEGMENTS + tl.arange(0, SEGMENTS)
    known = segment < tl.load(count)
    begin_s = tl.load(offsets + segment, mask=known, other=0)
    length_s = (tl.load(offsets + segment + 1, mask=known, other=0) - begin_s).to(tl.int32)
    length_s = tl.where(length_s <= limit, length_s, 0)
    dims = tl.arange(0, PADDED)[None, :]
    sum_sD = tl.zeros([SEGMENTS, PADDED], tl.float32)
    longest = tl.max(length_s, 0)
    for i in tl.range(0, longest):
        taken = i < length_s
        source_s = tl.load(order + begin_s + i, mask=taken, other=0)
        place = source_s[:, None] * WIDTH + dims
        sum_sD += tl.load(grads + place, mask=taken[:, None] & (dims < WIDTH), other=0.0).to(tl.float32)
    if longest > 0:
        row_s = tl.load(unique + segment, mask=known, other=0)
        apply_rule(
            sum_sD, row_s, length_s > 0, table, first, second,
            now, steps, eps, beta1, beta2, decay, seed, RULE, STOCHASTIC, WIDTH, PADDED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["n", "limit"])
def sum_pieces(
    grads, order, rank, offsets, pieces, n, limit,
    AT_ONCE: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Sum what `limit` sorted lookups hold of the long segments among them: those of the first and of the last.

    No third can be long. `pieces` (chunks, 2, D): the sum of the segment that the first lookup is of, and of that of
    the last lookup where it is another one.
    """
    chunk = tl.program_id(0)
    begin = chunk * limit
    stop = tl.minimum(begin + limit, n)
    head, tail = tl.load(rank + begin), tl.load(rank + stop - 1)
    head_stop, tail_begin = tl.load(offsets + head + 1), tl.load(offsets + tail)
    head_long = head_stop - tl.load(offsets + head) > limit
    tail_long = (tl.load(offsets + tail + 1) - tail_begin > limit) & (tail != head)
    if head_long | tail_long:
        dims = tl.arange(0, PADDED)[None, :]
        head_rD = tl.zeros([AT_ONCE, PADDED], tl.float32)
        tail_rD = tl.zeros([AT_ONCE, PADDED], tl.float32)
        for start in tl.range(begin, stop, AT_ONCE):
            at = start + tl.arange(0, AT_ONCE)
            of_head, of_tail = (at < head_stop) & head_long & (at < stop), (at >= tail_begin) & tail_long & (at < stop)
            taken = of_head | of_tail
            source_r = tl.load(order + at, mask=taken, other=0)
            place = source_r[:, None] * WIDTH + dims
            grad_rD = tl.load(grads + place, mask=taken[:, None] & (dims < WIDTH), other=0.0).to(tl.float32)
            head_rD += tl.where(of_head[:, None], grad_rD, 0.0)
            tail_rD += tl.where(of_tail[:, None], grad_rD, 0.0)
        flat = tl.arange(0, PADDED)
        place = pieces + chunk.to(tl.int64) * 2 * WIDTH + flat
        tl.store(place, tl.sum(head_rD, 0), mask=flat < WIDTH)
        tl.store(place + WIDTH, tl.sum(tail_rD, 0), mask=flat < WIDTH)


@triton.jit(do_not_specialize=["n", "seed", "limit"])
def sum_long(
    pieces, rank, unique, offsets, table, first, second, n,
    now, steps, eps, beta1, beta2, decay, seed, limit,
    RULE: tl.constexpr, STOCHASTIC: tl.constexpr, AT_ONCE: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Join the pieces of the long segment that starts among `limit` sorted lookups, if one does; apply RULE."""
    chunk = tl.program_id(0)
    begin = chunk * limit
    segment = tl.load(rank + tl.minimum(begin + limit, n) - 1)
    segment_begin, segment_stop = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    # A segment longer than a chunk reaches the end of the chunk it starts in, so that is where it is looked for.
    if (segment_begin >= begin) & (segment_stop - segment_begin > limit):
        dims = tl.arange(0, PADDED)[None, :]
        sum_rD = tl.zeros([AT_ONCE, PADDED], tl.float32)
        last = ((segment_stop - 1) // limit).to(tl.int32)
        for start in tl.range(chunk, last + 1, AT_ONCE):
            at = start + tl.arange(0, AT_ONCE)
            # Where the segment starts it is the last of its chunk, perhaps not the first; later it is the first.
            second_place = (at == chunk) & (tl.load(rank + begin) != segment)
            place = (at.to(tl.int64) * 2 + second_place.to(tl.int64))[:, None] * WIDTH + dims
            sum_rD += tl.load(pieces + place, mask=(at <= last)[:, None] & (dims < WIDTH), other=0.0)
        apply_rule(
            tl.sum(sum_rD, 0)[None, :], tl.load(unique + segment) + tl.arange(0, 1),
            tl.full([1], 1, tl.int1), table, first, second,
            now, steps, eps, beta1, beta2, decay, seed, RULE, STOCHASTIC, WIDTH, PADDED,
        )  # fmt: skip


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return what is worth compiling ahead: (name, kernel, signature, constants, options)."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    for width in (64, 128, 256, 512):
        sizes, options = {"WIDTH": width, "PADDED": width}, {"num_warps": WARPS}
        at_once = {"AT_ONCE": rows_at_once(width)}
        found.append((f"pieces D={width}", sum_pieces, PIECES, sizes | at_once, options))
        for rule in (PUT, ADAGRAD, ADAMW, SQUARE):
            for dtype in ("fp32", "bf16"):
                flags = {"RULE": rule.value, "STOCHASTIC": dtype == "bf16" and rule in (ADAGRAD, ADAMW)} | sizes
                types = {"table": f"*{dtype}", "first": "*fp32", "second": "*fp32"} | SETTINGS
                name = f"rule={rule.value} table={dtype} D={width}"
                short = flags | {"SEGMENTS": segments_at_once(width)}
                found.append((f"short {name}", sum_short, SHORT | types, short, options))
                found.append((f"long {name}", sum_long, LONG | types, flags | at_once, options))
    return found


SETTINGS = {
    "now": "*fp32", "steps": "*i64", "eps": "fp32", "beta1": "fp32", "beta2": "fp32", "decay": "fp32", "seed": "i64",
    "limit": "i32",
}  # fmt: skip
SHORT = {"grads": "*fp32", "order": "*i64", "unique": "*i64", "offsets": "*i64", "count": "*i64"}
PIECES = {
    "grads": "*fp32",
    "order": "*i64",
    "rank": "*i64",
    "offsets": "*i64",
    "pieces": "*fp32",
    "n": "i32",
    "limit": "i32",
}
LONG = {"pieces": "*fp32", "rank": "*i64", "unique": "*i64", "offsets": "*i64", "n": "i32"}
