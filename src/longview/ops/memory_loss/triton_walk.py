# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""The kernel that walks over the memory for a block of anchors: tiles of similarities live in registers.

One kernel serves all losses. `PAIRS` says which pairs of a tile count, `FORM` what is summed over them
(`triton_sums`), and with GRAD the rows of the memory are summed with the weights of that form while their tile is in
shared memory.

Shapes: n anchors, m rows of the memory, d width, S splits; r anchors and c rows of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from longview.ops.memory_loss.triton_match import LEFT_OUT
from longview.ops.memory_loss.triton_sums import (
    NO_ROW,
    NOTHING,
    TOO_LARGE,
    join_best,
    join_powers,
    log_of,
    pairs_of,
    tile_sums,
)
from longview.ops.softmax_loss.triton_tile import load_rows, load_some_rows, store_rows


@triton.jit
def load_tile(memory, item_c, m, first, PIECES: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Return rows of the memory as (c, PADDED), the last one where there are no more: they are left out later.

    That takes fewer instructions than a mask for each row. With PIECES `memory` begins with row `first`.
    """
    dims = tl.arange(0, PADDED)
    item_c = tl.minimum(item_c, m - 1)
    if PIECES:
        item_c -= first
    place = memory + item_c.to(tl.int64)[:, None] * WIDTH + dims[None, :]
    if WIDTH < PADDED:
        return tl.load(place, mask=(dims < WIDTH)[None, :], other=0.0)
    return tl.load(place)


@triton.jit
def nothing_yet(row, FORM: tl.constexpr):
    """Return what the first and the second sum of a form begin with, (r,) each."""
    first_r = tl.zeros(row.shape, tl.float32)
    second_r = first_r
    if FORM == "best":
        first_r = tl.full(row.shape, float("-inf"), tl.float32)
        second_r = tl.full(row.shape, NO_ROW, tl.int32)
    elif FORM == "power" or FORM == "circle":
        first_r = tl.full(row.shape, NOTHING, tl.float32)
    return first_r, second_r


@triton.jit
def walk_all(
    query_rd, row, block, memory, own_codes, codes, own_ids, ids, own_rows, inverses, words,
    constant_r, given_r, first_r, second_r, mass_r, grad_rd,
    begin, stop, n, m, piece, blocks_per_bit, factor, u, v,
    FORM: tl.constexpr, PAIRS: tl.constexpr, SIGN: tl.constexpr, LESS: tl.constexpr, FIXED: tl.constexpr,
    IDS: tl.constexpr, ROWS_OUT: tl.constexpr, AFFINE: tl.constexpr, NORM: tl.constexpr, PIECES: tl.constexpr,
    COUNT: tl.constexpr, GRAD: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Return the sums over rows `begin` to `stop`; pairs are looked at where the word of their tile says so."""
    third_r = tl.zeros([ROWS], tl.float32)
    bit = (block // blocks_per_bit).to(tl.int64)
    # What does not change is made again for each tile where keeping it would take more registers than there are.
    for tile in tl.range(begin // ITEMS, tl.cdiv(stop, ITEMS), disable_licm=NORM):
        item_c = tile * ITEMS + tl.arange(0, ITEMS)  # a multiple that the compiler sees
        look = (tl.load(words + tile) >> bit) & 1
        memory_cd = load_tile(memory, item_c, m, piece * ITEMS, PIECES, WIDTH, PADDED)
        dot_rc = tl.dot(query_rd, tl.trans(memory_cd), input_precision="ieee")
        if look != 0:
            own_code_r = tl.load(own_codes + row, mask=row < n, other=0)
            own_id_r = tl.load(own_ids + row, mask=row < n, other=0) if IDS else own_code_r
            own_row_r = tl.load(own_rows + row, mask=row < n, other=-1) if ROWS_OUT else own_code_r
            code_c = tl.load(codes + item_c, mask=item_c < m, other=LEFT_OUT)
            id_c = tl.load(ids + item_c, mask=item_c < m, other=LEFT_OUT) if IDS else code_c
            taken_rc = pairs_of(own_code_r, code_c, own_id_r, id_c, own_row_r, item_c, PAIRS, IDS, ROWS_OUT)
            dot_rc = tl.where(taken_rc, dot_rc, float("-inf"))
        inverse_c = item_c
        if NORM:
            inverse_c = tl.load(inverses + item_c)  # the last tile has all of its own, too
        first_r, second_r, third_r, mass_r, grad_rd = tile_sums(
            memory_cd, dot_rc, dot_rc, item_c, constant_r, inverse_c, given_r,
            first_r, second_r, third_r, mass_r, grad_rd, factor, u, v,
            FORM, SIGN, AFFINE, NORM, LESS, False, FIXED, COUNT, GRAD,
        )  # fmt: skip
    return first_r, second_r, third_r, mass_r, grad_rd


@triton.jit
def walk_listed(
    query_rd, row, block, memory, own_codes, codes, own_ids, ids, own_rows, inverses, rows, counts, segment_words,
    constant_r, given_r, begin, stop, n, blocks_per_bit, factor, u, v,
    FORM: tl.constexpr, PAIRS: tl.constexpr, SIGN: tl.constexpr, LESS: tl.constexpr,
    IDS: tl.constexpr, ROWS_OUT: tl.constexpr, AFFINE: tl.constexpr, NORM: tl.constexpr, COUNT: tl.constexpr,
    GRAD: tl.constexpr, SEGMENT: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Return the sums over the rows that are listed for the segments from `begin` to `stop`."""
    first_r, second_r = nothing_yet(row, FORM)
    third_r = tl.zeros([ROWS], tl.float32)
    mass_r = tl.zeros([ROWS], tl.float32)
    grad_rd = tl.zeros([ROWS, PADDED], tl.float32)
    bit = (block // blocks_per_bit).to(tl.int64)
    own_code_r = tl.load(own_codes + row, mask=row < n, other=0)
    own_id_r = tl.load(own_ids + row, mask=row < n, other=0) if IDS else own_code_r
    own_row_r = tl.load(own_rows + row, mask=row < n, other=-1) if ROWS_OUT else own_code_r
    for segment in tl.range(begin // SEGMENT, tl.cdiv(stop, SEGMENT)):
        some = (tl.load(segment_words + segment) >> bit) & 1
        count = tl.where(some != 0, tl.load(counts + segment), 0)
        for start in tl.range(0, count, ITEMS):
            at = start + tl.arange(0, ITEMS)
            item_c = tl.load(rows + segment * SEGMENT + at, mask=at < count, other=0)
            code_c = tl.load(codes + item_c, mask=at < count, other=LEFT_OUT)
            id_c = tl.load(ids + item_c, mask=at < count, other=LEFT_OUT) if IDS else code_c
            inverse_c = code_c
            if NORM:
                inverse_c = tl.load(inverses + item_c)
            memory_cd = load_some_rows(memory, item_c, at < count, WIDTH, PADDED)
            dot_rc = tl.dot(query_rd, tl.trans(memory_cd), input_precision="ieee")
            taken_rc = pairs_of(own_code_r, code_c, own_id_r, id_c, own_row_r, item_c, PAIRS, IDS, ROWS_OUT)
            first_r, second_r, third_r, mass_r, grad_rd = tile_sums(
                memory_cd, dot_rc, taken_rc, item_c, constant_r, inverse_c, given_r,
                first_r, second_r, third_r, mass_r, grad_rd, factor, u, v,
                FORM, SIGN, AFFINE, NORM, LESS, True, False, COUNT, GRAD,
            )  # fmt: skip
    return first_r, second_r, third_r, mass_r, grad_rd


@triton.jit
def walk_pieces(
    query_rd, row, block, split, memory, own_codes, codes, own_ids, ids, own_rows, inverses, words,
    constant_r, given_r, firsts_Sn, seconds_Sn, grads_Snd, wrongs,
    n, m, per_split, piece, per_piece, blocks_per_bit, factor, u, v,
    FORM: tl.constexpr, PAIRS: tl.constexpr, SIGN: tl.constexpr, LESS: tl.constexpr,
    REDO: tl.constexpr, IDS: tl.constexpr, ROWS_OUT: tl.constexpr, AFFINE: tl.constexpr, NORM: tl.constexpr,
    PIECES: tl.constexpr, SHARE: tl.constexpr, COUNT: tl.constexpr, GRAD: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Return the sums of a split over all of its rows, or with PIECES over those of a piece and the pieces before, and
    for which anchors they are to be written.
    """
    POWERS: tl.constexpr = FORM == "power" or FORM == "circle"
    first_r, second_r = nothing_yet(row, FORM)
    mass_r = tl.zeros([ROWS], tl.float32)
    written = row < n
    begin, end = split * per_split, m
    slot = split // SHARE
    together = slot * SHARE * per_split  # where the splits of a slot begin
    if PIECES:
        begin += piece * ITEMS
        together += piece * ITEMS
        end = tl.minimum((piece + per_piece) * ITEMS, m)
    stop = tl.minimum(begin + per_split, end)
    if REDO:
        wrong = tl.load(wrongs + slot * tl.num_programs(0) + block) != 0
        written = row < tl.where(wrong, n, 0)
        # The first split of a slot does the work of all.
        stop = tl.where(wrong & (begin == together), tl.minimum(begin + SHARE * per_split, end), begin)
    if POWERS and not REDO:
        near, none_r = tl.minimum(together + ITEMS, end), tl.full([ROWS], NOTHING, tl.float32)
        top_r = walk_all(
            query_rd, row, block, memory, own_codes, codes, own_ids, ids, own_rows, inverses, words,
            constant_r, given_r, none_r, second_r, mass_r, mass_r,
            together, near, n, m, piece, blocks_per_bit, factor, u, v,
            FORM, PAIRS, SIGN, LESS, False, IDS, ROWS_OUT, AFFINE, NORM, PIECES, COUNT, False,
            ROWS, ITEMS, WIDTH, PADDED,
        )[0]  # fmt: skip
        first_r = tl.where(top_r == NOTHING, 0.0, top_r)
    old_first_r, old_second_r = nothing_yet(row, FORM)
    if PIECES:
        old_first_r = tl.load(firsts_Sn + split * n + row, mask=written, other=old_first_r)
        old_second_r = tl.load(seconds_Sn + split * n + row, mask=written, other=old_second_r)
        if POWERS:
            first_r = tl.where(old_first_r == NOTHING, first_r, old_first_r)
        elif FORM == "best":
            first_r, second_r = old_first_r, old_second_r
    first_r, second_r, _, mass_r, grad_rd = walk_all(
        query_rd, row, block, memory, own_codes, codes, own_ids, ids, own_rows, inverses, words,
        constant_r, given_r, first_r, second_r, mass_r, tl.zeros([ROWS, PADDED], tl.float32),
        begin, stop, n, m, piece, blocks_per_bit, factor, u, v,
        FORM, PAIRS, SIGN, LESS, POWERS and not REDO, IDS, ROWS_OUT, AFFINE, NORM, PIECES, COUNT, GRAD,
        ROWS, ITEMS, WIDTH, PADDED,
    )  # fmt: skip
    if PIECES and FORM != "best":
        shrink_r = tl.full([ROWS], 1.0, tl.float32)
        if POWERS:
            shrink_r = tl.exp2(old_first_r - first_r)
        else:
            first_r += old_first_r
        second_r += old_second_r * shrink_r
        if GRAD and REDO:
            base = grads_Snd + split.to(tl.int64) * n * WIDTH
            grad_rd += load_rows(base, tl.where(written, row, n), n, WIDTH, PADDED) * shrink_r[:, None]
    if POWERS:
        first_r = tl.where(second_r == 0, NOTHING, first_r)
    return first_r, second_r, mass_r, grad_rd, written


@triton.jit(do_not_specialize=["n", "m", "per_split", "piece", "per_piece", "given_splits", "blocks_per_bit"])
def walk(
    queries, memory, own_codes, codes, own_ids, ids, own_rows, inverses, constants, rows, counts, words, segment_words,
    given_first, given_second, firsts_Sn, seconds_Sn, thirds_Sn, masses_Sn, grads_Snd, wrongs,
    n, m, per_split, piece, per_piece, given_splits, blocks_per_bit, factor, u, v, given_sign,
    FORM: tl.constexpr, PAIRS: tl.constexpr, SIGN: tl.constexpr, LESS: tl.constexpr,
    GATHER: tl.constexpr, REDO: tl.constexpr, PIECES: tl.constexpr, SHARE: tl.constexpr, IDS: tl.constexpr,
    ROWS_OUT: tl.constexpr, AFFINE: tl.constexpr, NORM: tl.constexpr, COUNT: tl.constexpr, GRAD: tl.constexpr,
    EARLY: tl.constexpr, ALONGSIDE: tl.constexpr,
    SEGMENT: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Write the sums of one split of the memory for one block of anchors.

    `per_split` rows a split, a multiple of ITEMS and with GATHER of SEGMENT, where only the listed rows are visited.
    With PIECES `memory` holds `per_piece` tiles from tile `piece` on, and what the pieces before them summed is there.
    SHARE splits, 1 or 2, add their gradients in one slot, which begins with zeros: as a + b is b + a, bits do not
    depend on who comes first.

    Powers of a slot are taken relative to the largest exponent of its first tile, which needs no rescaling.
    A second launch, with REDO, takes them relative to the largest so far where `wrongs`, which begin with zeros, say
    that this was too little.

    With EARLY the walk waits for what came before it; with ALONGSIDE, when it needs nothing of the walk before it, at
    its end, so that what waits for this one has waited for both.
    """
    if EARLY:
        if not ALONGSIDE:
            gdc_wait()
        gdc_launch_dependents()
    block, split = tl.program_id(0), tl.program_id(1)
    row = block * ROWS + tl.arange(0, ROWS)
    query_rd = load_rows(queries, row, n, WIDTH, PADDED)
    constant_r = tl.zeros([ROWS], tl.float32)
    if AFFINE:
        constant_r = tl.load(constants + row, mask=row < n, other=0.0)
    given_r = constant_r
    if FORM == "pull":
        top_r, total_r = join_powers(given_first, given_second, row, n, given_splits)
        given_r = log_of(top_r, total_r)
    if LESS:
        given_r = join_best(given_first, given_second, row, n, given_splits)[0] * given_sign
    if GATHER:
        written = row < n
        first_r, second_r, third_r, mass_r, grad_rd = walk_listed(
            query_rd, row, block, memory, own_codes, codes, own_ids, ids, own_rows, inverses, rows, counts,
            segment_words, constant_r, given_r, split * per_split, tl.minimum((split + 1) * per_split, m), n,
            blocks_per_bit, factor, u, v,
            FORM, PAIRS, SIGN, LESS, IDS, ROWS_OUT, AFFINE, NORM, COUNT, GRAD, SEGMENT, ROWS, ITEMS, WIDTH, PADDED,
        )  # fmt: skip
        if FORM == "pull":
            tl.store(thirds_Sn + split * n + row, third_r, mask=written)
    else:
        first_r, second_r, mass_r, grad_rd, written = walk_pieces(
            query_rd, row, block, split, memory, own_codes, codes, own_ids, ids, own_rows, inverses, words,
            constant_r, given_r, firsts_Sn, seconds_Sn, grads_Snd, wrongs,
            n, m, per_split, piece, per_piece, blocks_per_bit, factor, u, v,
            FORM, PAIRS, SIGN, LESS, REDO, IDS, ROWS_OUT, AFFINE, NORM, PIECES, SHARE, COUNT, GRAD,
            ROWS, ITEMS, WIDTH, PADDED,
        )  # fmt: skip
        if (FORM == "power" or FORM == "circle") and not REDO:
            if tl.max(second_r, 0) > TOO_LARGE:
                tl.store(wrongs + (split // SHARE) * tl.num_programs(0) + block, 1)
    tl.store(firsts_Sn + split * n + row, first_r, mask=written)
    tl.store(seconds_Sn + split * n + row, second_r, mask=written)
    if GRAD:
        if AFFINE:
            tl.store(masses_Sn + split * n + row, mass_r, mask=written)
        base = grads_Snd + (split // SHARE).to(tl.int64) * n * WIDTH
        # To load what is there would take more registers than there are.
        if (PIECES or SHARE > 1) and not REDO:
            dims = tl.arange(0, PADDED)
            place = base + row.to(tl.int64)[:, None] * WIDTH + dims[None, :]
            tl.atomic_add(place, grad_rd, mask=written[:, None] & (dims < WIDTH)[None, :], sem="relaxed")
        else:
            own = written & (split % SHARE == 0)
            store_rows(base, tl.where(own, row, n), n, grad_rd, WIDTH, PADDED)
    if EARLY and ALONGSIDE:
        gdc_wait()
