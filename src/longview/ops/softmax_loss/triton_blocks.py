# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Kernels of the full softmax for wide vectors: two of its four products are the vendor library's.

An accumulator of whole wide vectors leaves a program no room to keep a tensor core busy, so these kernels make tiles of
logits as any matrix product does, a part of the width at a time. `block_tops` keeps of each tile its rows' largest
logits and sums, `block_losses` joins them, and `block_weights` makes the tiles of some items again, now normalised, and
writes the 2-byte operand of both gradients. Logits are kept in units of log 2.

Shapes: n queries, V items, d width, T tiles of items, b items of a block; r queries and c items of a tile.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from longview.ops.softmax_loss.triton_tile import INVERSE_LOG2, Tile

SMALL = 16  # rows a program takes where there is no product
AT_ONCE = 64  # tiles whose largest logits and sums are joined at a time
DEPTH = 64  # columns of a product read at a time: 128 bytes a row
GROUP = 8  # tiles of queries that share items while those are in the cache

# Of block_tops and block_weights, for 2-byte products.
TILES = (Tile(128, 128, 8, 3), Tile(128, 128, 8, 3))
WIDE_TILE = Tile(32, 32, 4, 1)  # float32 products use no tensor core


@triton.jit
def place_of(program, rows, columns, GROUP: tl.constexpr):
    """Return the tile (of queries, of items) of a program: GROUP tiles of queries side by side, then the next items."""
    first = program // (GROUP * columns) * GROUP
    size = tl.minimum(rows - first, GROUP)
    inside = program % (GROUP * columns)
    return first + inside % size, inside // size


@triton.jit
def dots(
    queries, items, row, item, n, num_items,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Return the inner products (r, c) of `queries` and `items`; rows past the ends are the last ones, not zeros."""
    row, item = tl.minimum(row, n - 1).to(tl.int64), tl.minimum(item, num_items - 1).to(tl.int64)
    dims = tl.arange(0, DEPTH)
    query = queries + row[:, None] * WIDTH + dims[None, :]
    item = items + item[None, :] * WIDTH + dims[:, None]
    dot_rc = tl.zeros([ROWS, ITEMS], tl.float32)
    for start in tl.range(0, WIDTH, DEPTH):
        if WIDTH % DEPTH == 0:
            query_rd, item_dc = tl.load(query + start), tl.load(item + start)
        else:
            query_rd = tl.load(query + start, mask=dims[None, :] < WIDTH - start, other=0.0)
            item_dc = tl.load(item + start, mask=dims[:, None] < WIDTH - start, other=0.0)
        dot_rc = tl.dot(query_rd, item_dc, dot_rc, input_precision="ieee")
    return dot_rc


@triton.jit(do_not_specialize=["n", "num_items"])
def block_tops(
    queries, items, tops_Tn, totals_Tn,
    n, num_items, factor,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write each tile's largest logit and its sum of 2^(logit - largest), for each query."""
    at, tile = place_of(tl.program_id(0), tl.cdiv(n, ROWS), tl.cdiv(num_items, ITEMS), GROUP)
    row, item = at * ROWS + tl.arange(0, ROWS), tile * ITEMS + tl.arange(0, ITEMS)
    logit_rc = dots(queries, items, row, item, n, num_items, ROWS, ITEMS, WIDTH, DEPTH) * factor
    logit_rc = tl.where((item < num_items)[None, :], logit_rc, float("-inf"))
    top_r = tl.max(logit_rc, 1)
    total_r = tl.sum(tl.exp2(logit_rc - top_r[:, None]), 1)
    place = tile.to(tl.int64) * n + row
    tl.store(tops_Tn + place, top_r, mask=row < n)
    tl.store(totals_Tn + place, total_r, mask=row < n)


@triton.jit(do_not_specialize=["n", "num_items", "tiles"])
def block_losses(
    queries, items, targets, mean_item, tops_Tn, totals_Tn, logs, losses,
    n, num_items, tiles, factor, smoothing,
    SMOOTH: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Join the tiles: write the losses and the log2-sum-exps. A target outside the catalogue makes its loss NaN."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    top_r = tl.full([ROWS], float("-inf"), tl.float32)
    total_r = tl.zeros([ROWS], tl.float32)
    for start in tl.range(0, tiles, AT_ONCE):
        tile = start + tl.arange(0, AT_ONCE)
        place = tile.to(tl.int64)[:, None] * n + row[None, :]
        inside = (tile < tiles)[:, None] & (row < n)[None, :]
        top_tr = tl.load(tops_Tn + place, mask=inside, other=float("-inf"))
        total_tr = tl.load(totals_Tn + place, mask=inside, other=0.0)
        # Rows past the end have no largest logit, and -inf less -inf is not a number.
        higher_r = tl.maximum(tl.maximum(top_r, tl.max(top_tr, 0)), -3.0e38)
        total_r = total_r * tl.exp2(top_r - higher_r) + tl.sum(total_tr * tl.exp2(top_tr - higher_r[None, :]), 0)
        top_r = higher_r
    total_r = tl.where(row < n, total_r, 1.0)
    target_r = tl.load(targets + row, mask=row < n, other=0)
    known_r = (row < n) & (target_r >= 0) & (target_r < num_items)
    wanted_r = tl.zeros([ROWS], tl.float32)
    dims = tl.arange(0, DEPTH)
    for start in tl.range(0, WIDTH, DEPTH):
        inside = (start + dims < WIDTH)[None, :] & known_r[:, None]
        at = start + dims[None, :]
        query_rd = tl.load(queries + row.to(tl.int64)[:, None] * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
        item_rd = tl.load(items + target_r[:, None] * WIDTH + at, mask=inside, other=0.0).to(tl.float32)
        if SMOOTH:
            mean_d = tl.load(mean_item + start + dims, mask=start + dims < WIDTH, other=0.0)
            item_rd = item_rd * (1 - smoothing) + mean_d[None, :] * smoothing
        wanted_r += tl.sum(query_rd * item_rd, 1)
    # Differences before the logarithm, or a small loss would drown in the last digits of large logits.
    loss_r = (tl.log2(total_r) + (top_r - wanted_r * factor)) * INVERSE_LOG2
    tl.store(losses + row, tl.where(known_r, loss_r, float("nan")), mask=row < n)
    tl.store(logs + row, top_r + tl.log2(total_r), mask=row < n)


@triton.jit(do_not_specialize=["n", "size", "first"])
def block_weights(
    queries, items, targets, logs, weights_nb,
    n, size, first, stride, factor, keep,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write p - keep * onehot of `size` items, of which `items` points at number `first`; rows are `stride` apart."""
    at, tile = place_of(tl.program_id(0), tl.cdiv(n, ROWS), tl.cdiv(size, ITEMS), GROUP)
    row, item = at * ROWS + tl.arange(0, ROWS), tile * ITEMS + tl.arange(0, ITEMS)
    log_r = tl.load(logs + row, mask=row < n, other=float("inf"))
    target_r = tl.load(targets + row, mask=row < n, other=-1).to(tl.int32) - first
    p_rc = tl.exp2(dots(queries, items, row, item, n, size, ROWS, ITEMS, WIDTH, DEPTH) * factor - log_r[:, None])
    # Before rounding: p near 1 less 1 must not lose its digits.
    p_rc = tl.where(item[None, :] == target_r[:, None], p_rc - keep, p_rc)
    place = weights_nb + row.to(tl.int64)[:, None] * stride + item[None, :]
    tl.store(place, p_rc.to(weights_nb.dtype.element_ty), mask=(row < n)[:, None] & (item < size)[None, :])


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return what is worth compiling ahead: (name, kernel, signature, constants, options)."""
    found = []
    for width in (384, 512, 1024):
        for kernel, signature, tile in ((block_tops, TOPS, TILES[0]), (block_weights, WEIGHTS, TILES[1])):
            constants = {"ROWS": tile.rows, "ITEMS": tile.items, "WIDTH": width, "DEPTH": DEPTH, "GROUP": GROUP}
            options = {"num_warps": tile.warps, "num_stages": tile.stages}
            found.append((f"{kernel.__name__} d={width}", kernel, signature, constants, options))
    return found


TOPS = {
    "queries": "*bf16", "items": "*bf16", "tops_Tn": "*fp32", "totals_Tn": "*fp32",
    "n": "i32", "num_items": "i32", "factor": "fp32",
}  # fmt: skip
WEIGHTS = {
    "queries": "*bf16", "items": "*bf16", "targets": "*i64", "logs": "*fp32", "weights_nb": "*bf16",
    "n": "i32", "size": "i32", "first": "i32", "stride": "i32:16", "factor": "fp32", "keep": "fp32",
}  # fmt: skip
