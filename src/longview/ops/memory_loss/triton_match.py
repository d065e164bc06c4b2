# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Kernels that prepare a walk: anchors in the order of labels, small codes for 64-bit labels, where to look twice.

With the anchors sorted, those of one label are neighbours, and a row of the memory concerns few blocks of anchors. So
each tile of the memory gets a word with a bit for each block of anchors (or for a few blocks, where there are more
than 64): where it is not set, every pair of the tile and the block is a negative, and the walk compares nothing.

With EARLY (Hopper and later) a kernel begins while the one before it ends, and waits where it reads what that wrote.

Shapes: b anchors, m rows of the memory, d width; SEGMENT rows a program, BLOCK at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from longview.ops.softmax_loss.triton_tile import load_some_rows, store_rows

BLOCK = 2048  # rows of the memory that are matched at a time, and the least of a segment
SEGMENTS = 96  # about as many segments, each with a list of its possible positives
WARPS = 8  # of `match_rows`
REGISTERS = 128  # of a thread of it; with the compiler's own limit some values spill
SORT_REGISTERS = 160  # of a thread of `prepare_anchors`, likewise
COLUMNS = 256  # anchors that are compared at a time
BITS = 64
NORM_VALUES = 16384  # of the memory, which a program divides by their norms: enough are on their way at a time
ZEROED = 8192  # zeros that a program writes
ABSENT = tl.constexpr(-1)  # the code of a label that no anchor has
LEFT_OUT = tl.constexpr(-2)  # the code of a row that takes no part
TINY = tl.constexpr(1e-24)  # least square of a norm that a row is divided by


@triton.jit
def code_of(key, ordered, b, STEPS: tl.constexpr):
    """Return for each key its first place in the `ordered` (b,) keys, or ABSENT."""
    low = tl.zeros_like(key).to(tl.int32)
    high = low + b
    for _ in tl.range(0, STEPS, num_stages=1):  # short code: it is fetched once a block
        middle = (low + high) // 2
        below = tl.load(ordered + middle, mask=middle < b, other=0) < key
        open_ = low < high
        low = tl.where(open_ & below, middle + 1, low)
        high = tl.where(open_ & (below == 0), middle, high)
    found = tl.load(ordered + low, mask=low < b, other=0) == key
    return tl.where(found & (low < b), low, ABSENT)


@triton.jit
def places_of(key, keys, row, b, COLUMNS: tl.constexpr):
    """Return where each key of anchor `row` stands among all `keys` (b,) in order, the first and last equal to it."""
    below, before, equal = tl.zeros_like(row), tl.zeros_like(row), tl.zeros_like(row)
    for start in tl.range(0, b, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        other = tl.load(keys + column, mask=column < b, other=0)
        inside = (column < b)[None, :]
        same = (other[None, :] == key[:, None]) & inside
        below += tl.sum(((other[None, :] < key[:, None]) & inside).to(tl.int32), 1)
        before += tl.sum((same & (column[None, :] < row[:, None])).to(tl.int32), 1)
        equal += tl.sum(same.to(tl.int32), 1)
    return below + before, below, below + equal - 1


@triton.jit
def either(a, b):
    """Return the bits of both words."""
    return a | b


@triton.jit
def match_segment(
    segment, labels, ids, taken, ordered_labels, ordered_ids, ordered_rows, ends,
    codes, id_codes, rows, counts, words, segment_words,
    m, b, per_bit,
    IDS: tl.constexpr, ROWS_OUT: tl.constexpr, MASKED: tl.constexpr,
    STEPS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    """Write the codes of a segment's rows, its possible positives in order with their count, and words.

    2^`per_bit` anchors share a bit.
    """
    first = segment * SEGMENT
    count = 0
    whole = tl.zeros([BLOCK // ITEMS], tl.int64)
    for start in tl.range(0, tl.minimum(SEGMENT, m - first), BLOCK):
        row = first + start + tl.arange(0, BLOCK)
        inside = row < m
        code = code_of(tl.load(labels + row, mask=inside, other=0), ordered_labels, b, STEPS)
        everywhere = inside == 0
        if MASKED:
            left_out = tl.load(taken + row, mask=inside, other=0) == 0
            code = tl.where(left_out, LEFT_OUT, code)
            everywhere = everywhere | left_out
        tl.store(codes + row, code, mask=inside)
        if IDS:
            id_code = code_of(tl.load(ids + row, mask=inside, other=0), ordered_ids, b, STEPS)
            tl.store(id_codes + row, id_code, mask=inside)
            everywhere = everywhere | (id_code >= 0)
        if ROWS_OUT:
            everywhere = everywhere | (code_of(row.to(tl.int64), ordered_rows, b, STEPS) >= 0)
        hit = inside & (code >= 0)
        one = tl.full([BLOCK], 1, tl.int64)
        low = (code >> per_bit).to(tl.int64)
        high = (tl.load(ends + code, mask=hit, other=0) >> per_bit).to(tl.int64)
        word = (((one << tl.where(hit, high, 0)) << 1) - 1) & (((one << tl.where(hit, low, 0)) - 1) ^ -1)
        word = tl.where(everywhere, -one, tl.where(hit, word, 0))
        tile = (first + start) // ITEMS + tl.arange(0, BLOCK // ITEMS)
        word = tl.reduce(tl.reshape(word, [BLOCK // ITEMS, ITEMS]), 1, either)
        tl.store(words + tile, word, mask=tile * ITEMS < m)
        whole = whole | word
        number = hit.to(tl.int32)
        tl.store(rows + first + count + tl.cumsum(number, 0) - 1, row, mask=hit)
        count += tl.sum(number, 0)
    tl.store(counts + segment, count)
    tl.store(segment_words + segment, tl.reduce(whole, 0, either))


@triton.jit
def seen_rows(row, m, memory, scale, shift, AFFINE: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Return some rows of the memory as they are seen, row * scale + shift over its norm, and 1 / the norms.

    Past the memory's end the norms are something finite. The rows pass by the first cache, which is for the labels.
    """
    dims = tl.arange(0, PADDED)
    inside = (row < m)[:, None]
    if WIDTH < PADDED:
        inside = inside & (dims < WIDTH)[None, :]
    place = memory + row.to(tl.int64)[:, None] * WIDTH + dims[None, :]
    row_rd = tl.load(place, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
    if AFFINE:
        scale_d = tl.load(scale + dims, mask=dims < WIDTH, other=0.0).to(tl.float32)
        shift_d = tl.load(shift + dims, mask=dims < WIDTH, other=0.0).to(tl.float32)
        row_rd = row_rd * scale_d[None, :] + shift_d[None, :]
    inverse_r = 1 / tl.sqrt(tl.maximum(tl.sum(row_rd * row_rd, 1), TINY))
    return row_rd * inverse_r[:, None], inverse_r


@triton.jit
def see_rows(
    block, memory, scale, shift, inverses, seen, m, held,
    AFFINE: tl.constexpr, NORMS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Write 1 / the norms of NORMS rows of the memory, also of rows past its end, and of the first `held` rows what
    they are `seen` as.
    """
    row = block * NORMS + tl.arange(0, NORMS)
    row_rd, inverse_r = seen_rows(row, m, memory, scale, shift, AFFINE, WIDTH, PADDED)
    tl.store(inverses + row, inverse_r)
    store_rows(seen, row, held, row_rd, WIDTH, PADDED)


@triton.jit(do_not_specialize=["m", "b", "per_bit", "segments", "held", "number"])
def match_rows(
    labels, ids, taken, ordered_labels, ordered_ids, ordered_rows, ends,
    codes, id_codes, rows, counts, words, segment_words, memory, scale, shift, inverses, seen, zeros,
    m, b, per_bit, segments, held, number,
    IDS: tl.constexpr, ROWS_OUT: tl.constexpr, MASKED: tl.constexpr, AFFINE: tl.constexpr, NORM: tl.constexpr,
    STEPS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr, ITEMS: tl.constexpr,
    NORMS: tl.constexpr, ZEROS: tl.constexpr, EARLY: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Match a segment, or write ZEROS of a `number` of `zeros`, or with NORM see NORMS rows.

    Few programs match, and most of the time they wait; so the others do their work in the shade of these, and with
    EARLY of the sorting of the anchors, too, with which they have nothing to do.
    """
    if EARLY:
        gdc_launch_dependents()
    program = tl.program_id(0)
    others = segments + tl.cdiv(number, ZEROS)
    if program < segments:
        if EARLY:
            gdc_wait()
        match_segment(
            program, labels, ids, taken, ordered_labels, ordered_ids, ordered_rows, ends,
            codes, id_codes, rows, counts, words, segment_words, m, b, per_bit,
            IDS, ROWS_OUT, MASKED, STEPS, SEGMENT, BLOCK, ITEMS,
        )  # fmt: skip
    elif program < others:
        place = (program - segments) * ZEROS + tl.arange(0, ZEROS)
        tl.store(zeros + place, tl.zeros([ZEROS], tl.int32), mask=place < number)
    elif NORM:
        see_rows(program - others, memory, scale, shift, inverses, seen, m, held, AFFINE, NORMS, WIDTH, PADDED)


@triton.jit(do_not_specialize=["m", "first", "held", "number"])
def copy_rows(
    memory, scale, shift, seen, wrongs, m, first, held, number,
    AFFINE: tl.constexpr, REDO: tl.constexpr, NORMS: tl.constexpr, EARLY: tl.constexpr, WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """Write `held` rows of the memory from `first` on as they are seen; with REDO where a walk is done again."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0) * NORMS + tl.arange(0, NORMS)
    if REDO:
        some = 0
        for start in tl.range(0, number, 128):
            place = start + tl.arange(0, 128)
            some = tl.maximum(some, tl.max(tl.load(wrongs + place, mask=place < number, other=0), 0))
        held = tl.where(some != 0, held, 0)
    row_rd, _ = seen_rows(first + row, first + held, memory, scale, shift, AFFINE, WIDTH, PADDED)
    store_rows(seen, row, held, row_rd, WIDTH, PADDED)


@triton.jit(do_not_specialize=["b"])
def prepare_anchors(
    embeddings, labels, ids, own_rows, scale, shift,
    ordered_labels, ordered_ids, ordered_rows, order, queries, plain, constants, codes, ends, id_codes, rows,
    b,
    IDS: tl.constexpr, ROWS_OUT: tl.constexpr, AFFINE: tl.constexpr, PLAIN: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, EARLY: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Sort the anchors by label: write where each is from, its code, its embedding times `scale` and the product with
    `shift`, with PLAIN the `plain` embedding; and their labels, ids and rows of the memory, each in its own order.
    """
    if EARLY:
        gdc_launch_dependents()
    source = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    label = tl.load(labels + source, mask=source < b, other=0)
    row, code, end = places_of(label, labels, source, b, COLUMNS)
    row = tl.where(source < b, row, b)
    tl.store(order + row, source, mask=row < b)
    tl.store(ordered_labels + row, label, mask=row < b)
    tl.store(codes + row, code, mask=row < b)
    tl.store(ends + row, end, mask=row < b)
    if IDS:
        id_ = tl.load(ids + source, mask=source < b, other=0)
        place, id_code, _ = places_of(id_, ids, source, b, COLUMNS)
        tl.store(ordered_ids + place, id_, mask=source < b)
        tl.store(id_codes + row, id_code, mask=row < b)
    if ROWS_OUT:
        own_row = tl.load(own_rows + source, mask=source < b, other=-1)
        place, _, _ = places_of(own_row, own_rows, source, b, COLUMNS)
        tl.store(ordered_rows + place, own_row, mask=source < b)
        tl.store(rows + row, own_row.to(tl.int32), mask=row < b)
    query_rd = load_some_rows(embeddings, source, source < b, WIDTH, PADDED).to(tl.float32)
    if AFFINE:
        if PLAIN:
            store_rows(plain, row, b, query_rd, WIDTH, PADDED)
        dims = tl.arange(0, PADDED)
        shift_d = tl.load(shift + dims, mask=dims < WIDTH, other=0.0).to(tl.float32)
        tl.store(constants + row, tl.sum(query_rd * shift_d[None, :], 1), mask=row < b)
        query_rd *= tl.load(scale + dims, mask=dims < WIDTH, other=0.0).to(tl.float32)[None, :]
    store_rows(queries, row, b, query_rd, WIDTH, PADDED)
