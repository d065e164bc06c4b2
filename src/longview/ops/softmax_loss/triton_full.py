# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Kernels of the full softmax: tiles of logits live in registers and are never written.

The forward kernel is attention whose keys and values are both the catalogue: beside each query's log-sum-exp it
accumulates sum_v p_v x_v, which is the query's gradient but for the target row. One more kernel makes the tiles again
for the gradient of the items. So there are four matrix products where logits in memory need three, and no pass over
logits. Logits are kept in units of log 2, where the hardware's exponential lives.

Shapes: n queries, V items, d width, S splits of the catalogue (or of the queries), r queries and c items of a tile.

Source: Cut Your Losses in Large-Vocabulary Language Models, arXiv 2411.09009; FlashAttention-2, arXiv 2307.08691.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from longview.ops.softmax_loss.triton_tile import INVERSE_LOG2, Tile, load_rows, load_some_rows, store_rows

SMALL = 16  # rows a program takes where there is no product

# By padded width, for 2-byte products: forward, gradient of the items.
TILES = {
    64: (Tile(64, 128, 4, 3), Tile(64, 64, 4, 3)),
    128: (Tile(128, 64, 4, 4), Tile(32, 128, 4, 3)),
    256: (Tile(128, 64, 8, 2), Tile(64, 128, 8, 2)),
    512: (Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
}
WIDE_TILE = Tile(32, 32, 4, 1)  # float32 products use no tensor core


def tiles_for(padded: int, wide: bool) -> tuple[Tile, Tile]:
    """Return the tiles of the forward kernel and of the gradient of the items."""
    return (WIDE_TILE, WIDE_TILE) if wide else TILES[max(64, padded)]


@triton.jit(do_not_specialize=["n", "num_items", "per_split"])
def full_forward(
    queries, items, tops_Sn, totals_Sn, mixes_Snd,
    n, num_items, per_split, factor,
    MIX: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Write each split's largest logit, its sum of 2^(logit - largest), and with MIX that sum of weighted items.

    `factor` = log2(e) / temperature; `per_split` items a split, a multiple of ITEMS.
    """
    row, split = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    query_rd = load_rows(queries, row, n, WIDTH, PADDED)
    top_r = tl.full([ROWS], float("-inf"), tl.float32)
    total_r = tl.zeros([ROWS], tl.float32)
    mix_rd = tl.zeros([ROWS, PADDED], tl.float32)
    stop = tl.minimum((split + 1) * per_split, num_items)
    for start in tl.range(split * per_split, stop, ITEMS):
        item = start + tl.arange(0, ITEMS)
        item_cd = load_rows(items, item, stop, WIDTH, PADDED)
        dot_rc = tl.dot(query_rd, tl.trans(item_cd), input_precision="ieee")
        dot_rc = tl.where((item < stop)[None, :], dot_rc, float("-inf"))
        higher_r = tl.maximum(top_r, tl.max(dot_rc, 1) * factor)
        p_rc = tl.exp2(dot_rc * factor - higher_r[:, None])
        shrink_r = tl.exp2(top_r - higher_r)
        total_r = total_r * shrink_r + tl.sum(p_rc, 1)
        if MIX:
            mix_rd = tl.dot(p_rc.to(item_cd.dtype), item_cd, mix_rd * shrink_r[:, None], input_precision="ieee")
        top_r = higher_r
    tl.store(tops_Sn + split * n + row, top_r, mask=row < n)
    tl.store(totals_Sn + split * n + row, total_r, mask=row < n)
    if MIX:
        store_rows(mixes_Snd + split.to(tl.int64) * n * WIDTH, row, n, mix_rd, WIDTH, PADDED)


@triton.jit(do_not_specialize=["n", "num_items", "splits"])
def full_finish(
    queries, items, targets, mean_item, tops_Sn, totals_Sn, mixes_Snd, logs, losses, grad_queries,
    n, num_items, splits, factor, smoothing, weight,
    MIX: tl.constexpr, SMOOTH: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Join the splits: write the losses, the log2-sum-exps, and with MIX the gradients times `weight`.

    A target outside the catalogue makes its loss NaN.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    top_r = tl.full([ROWS], float("-inf"), tl.float32)
    for split in tl.range(0, splits):
        top_r = tl.maximum(top_r, tl.load(tops_Sn + split * n + row, mask=row < n, other=0.0))
    total_r = tl.zeros([ROWS], tl.float32)
    mix_rd = tl.zeros([ROWS, PADDED], tl.float32)
    for split in tl.range(0, splits):
        shrink_r = tl.exp2(tl.load(tops_Sn + split * n + row, mask=row < n, other=0.0) - top_r)
        total_r += tl.load(totals_Sn + split * n + row, mask=row < n, other=1.0) * shrink_r
        if MIX:
            mix_rd += load_some_rows(mixes_Snd, split * n + row, row < n, WIDTH, PADDED) * shrink_r[:, None]

    target_r = tl.load(targets + row, mask=row < n, other=0)
    known_r = (target_r >= 0) & (target_r < num_items)
    query_rd = load_rows(queries, row, n, WIDTH, PADDED).to(tl.float32)
    target_rd = load_some_rows(items, target_r, (row < n) & known_r, WIDTH, PADDED).to(tl.float32)
    wanted_rd = target_rd
    if SMOOTH:
        dims = tl.arange(0, PADDED)
        mean_d = tl.load(mean_item + dims, mask=dims < WIDTH, other=0.0)
        wanted_rd = target_rd * (1 - smoothing) + mean_d[None, :] * smoothing
    # Differences before the logarithm, or a small loss would drown in the last digits of large logits.
    loss_r = (tl.log2(total_r) + (top_r - tl.sum(query_rd * wanted_rd, 1) * factor)) * INVERSE_LOG2
    tl.store(losses + row, tl.where(known_r, loss_r, float("nan")), mask=row < n)
    tl.store(logs + row, top_r + tl.log2(total_r), mask=row < n)
    if MIX:
        store_rows(grad_queries, row, n, (mix_rd / total_r[:, None] - wanted_rd) * weight, WIDTH, PADDED)


@triton.jit(do_not_specialize=["n", "num_items", "per_split"])
def full_items(
    queries, items, targets, logs, grad_loss, constant, grad_SVd,
    n, num_items, per_split, factor, keep, weight,
    SMOOTH: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Write each split's (p - keep * onehot)^T queries * weight * grad_loss, for a block of items.

    `per_split` queries a split, a multiple of ROWS; `constant` (d,) is what smoothing takes off every row.
    """
    item, split = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS), tl.program_id(1)
    item_cd = load_rows(items, item, num_items, WIDTH, PADDED)
    grad_cd = tl.zeros([ITEMS, PADDED], tl.float32)
    stop = tl.minimum((split + 1) * per_split, n)
    for start in tl.range(split * per_split, stop, ROWS):
        row = start + tl.arange(0, ROWS)
        query_rd = load_rows(queries, row, stop, WIDTH, PADDED)
        log_r = tl.load(logs + row, mask=row < stop, other=float("inf"))  # 2^-inf: rows past the end add nothing
        target_r = tl.load(targets + row, mask=row < stop, other=-1).to(tl.int32)
        dot_cr = tl.dot(item_cd, tl.trans(query_rd), input_precision="ieee")
        p_cr = tl.exp2(dot_cr * factor - log_r[None, :])
        # Before rounding: p near 1 less 1 must not lose its digits.
        p_cr = tl.where(item[:, None] == target_r[None, :], p_cr - keep, p_cr)
        grad_cd = tl.dot(p_cr.to(query_rd.dtype), query_rd, grad_cd, input_precision="ieee")
    if SMOOTH:
        dims = tl.arange(0, PADDED)
        share = tl.where(split == 0, 1.0, 0.0)
        grad_cd -= tl.load(constant + dims, mask=dims < WIDTH, other=0.0)[None, :] * share
    grad_cd *= weight * tl.load(grad_loss)
    store_rows(grad_SVd + split.to(tl.int64) * num_items * WIDTH, item, num_items, grad_cd, WIDTH, PADDED)


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return what is worth compiling ahead: (name, kernel, signature, constants, options)."""
    found = []
    for width, tiles in TILES.items():
        for flag in (False, True):
            for backward, tile in enumerate(tiles):
                name = f"full {f'items smooth={flag}' if backward else f'forward mix={flag}'} d={width}"
                kernel, signature = (full_items, BACKWARD) if backward else (full_forward, FORWARD)
                constants = {"ROWS": tile.rows, "ITEMS": tile.items, "WIDTH": width, "PADDED": width}
                constants["SMOOTH" if backward else "MIX"] = flag
                options = {"num_warps": tile.warps, "num_stages": tile.stages}
                found.append((name, kernel, signature, constants, options))
    return found


FORWARD = {
    "queries": "*bf16", "items": "*bf16", "tops_Sn": "*fp32", "totals_Sn": "*fp32", "mixes_Snd": "*fp32",
    "n": "i32", "num_items": "i32", "per_split": "i32", "factor": "fp32",
}  # fmt: skip
BACKWARD = {
    "queries": "*bf16", "items": "*bf16", "targets": "*i64", "logs": "*fp32", "grad_loss": "*fp32",
    "constant": "*fp32", "grad_SVd": "*fp32",
    "n": "i32", "num_items": "i32", "per_split": "i32", "factor": "fp32", "keep": "fp32", "weight": "fp32",
}  # fmt: skip
