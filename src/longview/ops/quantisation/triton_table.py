# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
# mypy: disable-error-code="assignment, var-annotated"
"""Rows of a quantised table, gathered and dequantised in one pass: written out, added up by bag, or scored.

A stored row is one run of bytes: codes, then a (scale, zero) pair of float16 for each group (`packing.py`), so that a
lookup touches one place of memory, be it the device's own or pinned memory of the host, which a kernel reads over the
bus row by row: only the bytes of the rows travel.

A thread reads whole words of codes, of which each byte is one column (8 bits) or the same column of both halves of a
group (4 bits), so that what it writes are runs of neighbouring columns too. Bytes saved are worth nothing where
unpacking takes longer, and conversions from integers are slow: codes are masked out where they are, into the fraction
of a float32 without an exponent (denormal). That is the code times a power of two, which the other factor makes good:
what codes are multiplied with, scale times weight or a query's value, is to be 0 or within 2^-64 and 2^40.

Shapes: W words of a row's codes (padded to a power of two), J bytes of a word, S rows at once, U times; R rows scored.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from longview.ops.launch import alignment, launch

LOOKUP_WARPS, LOOKUP_TILES = 4, 4
POOLED_TILES = 4
SCORE_WORDS, MOST_SCORED, SCORE_TURNS = 256, 64, 4  # words and rows that a program takes at once, and how often


@triton.jit
def _number(at, inside, V):
    """Return the number int32 of a row, read from `at` where `inside`, -1 for none; and where there is no such row."""
    row = tl.load(at, mask=inside, other=-1)
    known = row.to(tl.int64).to(tl.uint64, bitcast=True) < V.to(tl.uint64)  # one comparison for both ends
    return tl.where(known, row, -1).to(tl.int32), inside & ~known


@triton.jit
def _words(rows, row, word, D: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, J: tl.constexpr):
    """Return a word of codes, and scale and zero float32 of its group, for each of `row` and `word`, broadcast.

    Nothing is read, and all three are 0, where `row` is -1, or where a row has fewer words.
    """
    CODES: tl.constexpr = (D + GROUP - 1) // GROUP * (GROUP * BITS // 8)
    PITCH: tl.constexpr = CODES + (D + GROUP - 1) // GROUP * 4
    there, row = (row >= 0) & (word * J < CODES), row.to(tl.int64)
    WORD: tl.constexpr = tl.int64 if J == 8 else tl.int32
    # First what does not depend on the row: one multiplication and addition is left for each address.
    at = rows.to(tl.pointer_type(WORD)) + word
    codes = tl.load(at + row * (PITCH // J), mask=there, other=0)
    at = rows.to(tl.pointer_type(tl.int32)) + (CODES // 4 + word * J // (GROUP * BITS // 8))
    pair = tl.load(at + row * (PITCH // 4), mask=there, other=0)
    scale = (pair & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    zero = ((pair >> 16) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return codes, scale, zero


@triton.jit
def _added(x, codes, factor, J: tl.constexpr, BITS: tl.constexpr, j: tl.constexpr, HIGH: tl.constexpr):
    """Return x + 2^-62 * factor * code of byte `j` of each word; of the byte's higher half if `HIGH`.

    The code stays where it is, in the fraction of a float32 without an exponent: there it is code * 2^(AT - 149).
    """
    PLACE: tl.constexpr = 8 * (j % 4) + (4 if HIGH else 0)
    DOWN: tl.constexpr = 0 if PLACE + BITS <= 23 else 12 if BITS == 4 else 16
    AT: tl.constexpr = PLACE - DOWN
    half = codes
    if J == 8:
        half = (codes >> 32).to(tl.int32) if j >= 4 else codes.to(tl.int32)
    tiny = (half >> DOWN) & (((1 << BITS) - 1) << AT)
    return x + (factor * 2.0 ** (87 - AT)) * tiny.to(tl.float32, bitcast=True)


@triton.jit
def _together(x, J: tl.constexpr):
    """Return tensors (N,), for bytes 0 to J - 1, as one (N, J)."""
    if J == 8:
        even = tl.join(tl.join(x[0], x[4]), tl.join(x[2], x[6]))
        odd = tl.join(tl.join(x[1], x[5]), tl.join(x[3], x[7]))
        whole = tl.join(even, odd)
    else:
        whole = tl.join(tl.join(x[0], x[2]), tl.join(x[1], x[3]))
    return whole.reshape([x[0].shape[0], J])


@triton.jit
def _apart(x, J: tl.constexpr):
    """Return the J parts (W,) of x (W, J)."""
    if J == 8:
        even, odd = x.reshape([x.shape[0], 2, 2, 2]).split()
        even_low, even_high = even.split()
        odd_low, odd_high = odd.split()
        x0, x4 = even_low.split()
        x2, x6 = even_high.split()
        x1, x5 = odd_low.split()
        x3, x7 = odd_high.split()
        parts = (x0, x1, x2, x3, x4, x5, x6, x7)
    else:
        even, odd = x.reshape([x.shape[0], 2, 2]).split()
        x0, x2 = even.split()
        x1, x3 = odd.split()
        parts = (x0, x1, x2, x3)
    return parts


@triton.jit
def _columns(word, GROUP: tl.constexpr, BITS: tl.constexpr, J: tl.constexpr):
    """Return the column of each byte (W, J) of words (W,); its higher half of 4 bits is GROUP / 2 further on."""
    B: tl.constexpr = GROUP * BITS // 8
    byte = word * J
    return (byte // B * GROUP + byte % B)[:, None] + tl.arange(0, J)[None, :]


@triton.jit(do_not_specialize=["n", "V"])
def lookup_kernel(
    rows, ids, out, n, V, D: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, W: tl.constexpr, J: tl.constexpr,
    S: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """out[i] = zero + scale * code of the row ids[i], NaN where there is no such row, for U * S of them."""
    lane, first = tl.arange(0, S * W), tl.program_id(0) * (U * S)
    word, held = lane % W, ()
    for u in tl.static_range(U):  # everything is asked for before anything is used
        i = first + u * S + lane // W
        row, _ = _number(ids + i, i < n, V)
        held += ((i, row, _words(rows, row, word, D, GROUP, BITS, J)),)
    column = _columns(word, GROUP, BITS, J)
    for u in tl.static_range(U):
        i, row, words = held[u]
        codes, scale, zero = words
        zero = tl.where(row >= 0, zero * 2.0**-62, float("nan"))
        for high in tl.static_range(8 // BITS):
            x, at = (), column + high * (GROUP // 2)
            for j in tl.static_range(J):
                x += (_added(zero, codes, scale, J, BITS, j, high == 1) * 2.0**62,)
            x = _together(x, J).to(out.dtype.element_ty)
            wanted = (i < n)[:, None] & (at < D)
            tl.store(out + (i.to(tl.int64) * D)[:, None] + at, x, mask=wanted, cache_modifier=".cs")


@triton.jit(do_not_specialize=["n", "V"])
def pooled_kernel(
    rows, ids, offsets, weights, out, n, V, D: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    MEAN: tl.constexpr, W: tl.constexpr, J: tl.constexpr, S: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """out[b] = sum over i in offsets[b] … offsets[b + 1] - 1 of weights[i] * row ids[i], NaN with a row that is none.

    `weights` may be None; MEAN divides by the number of ids.
    """
    lane, bag = tl.arange(0, S * W), tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + bag).to(tl.int64), tl.load(offsets + bag + 1).to(tl.int64)
    begin = tl.minimum(tl.maximum(begin, 0), n)
    size = tl.maximum(tl.minimum(end, n) - begin, 0).to(tl.int32)  # 32 bits count within a bag
    ids = ids + begin
    word, rest, sums = lane % W, tl.zeros([S * W], tl.float32), ()
    for _ in tl.static_range(J * (8 // BITS)):
        sums += (tl.zeros([S * W], tl.float32),)
    place, ahead, unknown = lane // W, (), lane < 0
    for u in tl.static_range(U):
        row, none = _number(ids + place + u * S, place + u * S < size, V)
        ahead += (row,)
        unknown |= none
    for first in range(0, size, U * S):
        held, rows_now = (), ahead
        ahead = ()
        at = first + place
        for u in tl.static_range(U):  # everything is asked for before anything is used, ids a turn ahead
            weight = 1.0
            if weights is not None:
                weight = tl.load(weights + begin + at + u * S, mask=at + u * S < size, other=0.0).to(tl.float32)
            held += ((weight, _words(rows, rows_now[u], word, D, GROUP, BITS, J)),)
        next_ids, left = ids + at, size - at
        for u in tl.static_range(U):
            row, none = _number(next_ids + (U + u) * S, left > (U + u) * S, V)
            ahead += (row,)
            unknown |= none
        for u in tl.static_range(U):
            if first + u * S < size:
                weight, words = held[u]
                codes, scale, zero = words
                scale = scale * weight
                rest += zero * weight
                more = ()
                for j in tl.static_range(J * (8 // BITS)):
                    more += (_added(sums[j], codes, scale, J, BITS, j % J, j >= J),)
                sums = more
    rest = tl.where(unknown, float("nan"), rest)
    share = 1.0
    if MEAN:
        share = 1.0 / tl.maximum(size, 1).to(tl.float32)
    column = _columns(tl.arange(0, W), GROUP, BITS, J)
    for high in tl.static_range(8 // BITS):
        x, at = (), column + high * (GROUP // 2)
        for j in tl.static_range(J):
            x += ((sums[high * J + j] * 2.0**62 + rest) * share,)
        x = tl.sum(_together(x, J).reshape([S, W, J]), 0).to(out.dtype.element_ty)
        tl.store(out + bag * D + at, x, mask=at < D)


@triton.jit(do_not_specialize=["c", "V"])
def score_kernel(
    rows, ids, queries, out, c, V, D: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, W: tl.constexpr,
    J: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """out[q, i] = queries[q] · row ids[q, i] for T * R of the c candidates of a query, NaN where there is no such."""
    query, word = tl.program_id(1).to(tl.int64), tl.arange(0, W)
    column, whole, values = _columns(word, GROUP, BITS, J), tl.zeros([W], tl.float32), ()
    for high in tl.static_range(8 // BITS):
        at = column + high * (GROUP // 2)
        values += _apart(tl.load(queries + query * D + at, mask=at < D, other=0.0).to(tl.float32), J)
    for j in tl.static_range(J * (8 // BITS)):
        whole += values[j]
    begin = tl.program_id(0) * (T * R)
    for first in range(begin, tl.minimum(begin + T * R, c), R):
        i = first + tl.arange(0, R)
        row, _ = _number(ids + query * c + i, i < c, V)
        codes, scale, zero = _words(rows, row[:, None], word[None, :], D, GROUP, BITS, J)
        along = tl.zeros([R, W], tl.float32)
        for j in tl.static_range(J * (8 // BITS)):
            along = _added(along, codes, values[j][None, :], J, BITS, j % J, j >= J)
        score = tl.sum(scale * (along * 2.0**62) + zero * whole[None, :], 1)
        score = tl.where(row >= 0, score, float("nan"))
        tl.store(out + query * c + i, score.to(out.dtype.element_ty), mask=i < c)


def lookup(rows: Tensor, ids: Tensor, width: int, bits: int, group: int, dtype: torch.dtype) -> Tensor:
    """Return (n, width) of `dtype`; ids (n,) int64 or int32, contiguous, on the device of the result, n at least 1.

    `rows` (V, pitch) uint8 is on that device too, or in pinned memory of the host.
    """
    n, (words, word) = len(ids), _words_of(width, bits, group)
    out = torch.empty(n, width, dtype=dtype, device=ids.device)
    at_once = max(1, 32 * LOOKUP_WARPS // words)
    launch(
        lookup_kernel, (-(-n // (at_once * LOOKUP_TILES)), 1),
        (ids.get_device(), ids.dtype, dtype, alignment(rows), alignment(ids)), (rows, ids, out, n, len(rows)),
        {"D": width, "GROUP": group, "BITS": bits, "W": words, "J": word, "S": at_once, "U": LOOKUP_TILES},
        num_warps=LOOKUP_WARPS,
    )  # fmt: skip
    return out


def pooled(
    rows: Tensor, ids: Tensor, offsets: Tensor, weights: Tensor | None, mean: bool,
    width: int, bits: int, group: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return (bags, width) of `dtype`, at least one bag: sums, or means, of rows; sums in float32, in a fixed order.

    `rows` as in `lookup`; ids (n,) and offsets (bags + 1,) int64 or int32, weights (n,) floating, all contiguous.
    """
    bags, (words, word) = len(offsets) - 1, _words_of(width, bits, group)
    out = torch.empty(bags, width, dtype=dtype, device=ids.device)
    pooled_kernel[(bags,)](
        rows, ids, offsets, weights, out, len(ids), len(rows), width, group, bits, mean, words, word,
        max(1, 32 // words), POOLED_TILES, num_warps=1,
    )  # fmt: skip
    return out


def scores(rows: Tensor, ids_BC: Tensor, queries_BD: Tensor, bits: int, group: int) -> Tensor:
    """Return the inner products (b, c) of each query with its candidates; sums in float32, b and c at least 1.

    ids and queries contiguous; no candidate's row is ever written out.
    """
    (queries, candidates), width = ids_BC.shape, queries_BD.shape[1]
    out = torch.empty(queries, candidates, dtype=queries_BD.dtype, device=ids_BC.device)
    words, word = _words_of(width, bits, group)
    held = max(1, min(MOST_SCORED, SCORE_WORDS // words))
    launch(
        score_kernel, (-(-candidates // (held * SCORE_TURNS)), queries),
        (ids_BC.get_device(), ids_BC.dtype, queries_BD.dtype, *(alignment(x) for x in (rows, ids_BC, queries_BD))),
        (rows, ids_BC, queries_BD, out, candidates, len(rows)),
        {"D": width, "GROUP": group, "BITS": bits, "W": words, "J": word, "R": held, "T": SCORE_TURNS},
        num_warps=1,
    )  # fmt: skip
    return out


def _words_of(width: int, bits: int, group: int) -> tuple[int, int]:
    """Return the words of a row's codes, rounded up to a power of two, and their bytes."""
    groups = -(-width // group)
    codes = groups * group * bits // 8
    word = 8 if (codes + 4 * groups) % 8 == 0 else 4  # every row begins at a multiple of it
    return 1 << (codes // word - 1).bit_length(), word


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return (name, kernel, signature, constants, options) of the configurations in use."""
    found: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []
    types = {"rows": "*u8", "ids": "*i64", "out": "*bf16", "V": "i32"}
    bags = types | {"n": "i32", "offsets": "*i64"}
    for width, bits, group in ((64, 4, 64), (128, 4, 64), (128, 8, 64), (512, 4, 64), (512, 4, 32), (512, 8, 64)):
        words, word = _words_of(width, bits, group)
        sizes = {"D": width, "GROUP": group, "BITS": bits, "W": words, "J": word}
        name = f"{width} int{bits} group {group}"
        tiles = sizes | {"S": max(1, 32 * LOOKUP_WARPS // words), "U": LOOKUP_TILES}
        found.append((f"lookup {name}", lookup_kernel, types | {"n": "i32"}, tiles, {"num_warps": LOOKUP_WARPS}))
        tiles = sizes | {"S": max(1, 32 // words), "U": POOLED_TILES, "MEAN": False}
        found.append((f"pooled {name}", pooled_kernel, bags, tiles | {"weights": None}, {"num_warps": 1}))
        found.append((f"weighted {name}", pooled_kernel, bags | {"weights": "*fp32"}, tiles, {"num_warps": 1}))
        tiles = sizes | {"R": max(1, min(MOST_SCORED, SCORE_WORDS // words)), "T": SCORE_TURNS}
        found.append(
            (f"scores {name}", score_kernel, types | {"c": "i32", "queries": "*bf16"}, tiles, {"num_warps": 1})
        )
    return found
