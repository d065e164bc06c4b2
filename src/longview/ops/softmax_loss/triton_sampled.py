# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"
"""Kernels of the sampled softmax: rows of negatives are gathered into the product, and no logit is written.

`sampled_targets` makes the logits of the targets, `sampled_forward` walks over the negatives of a block of queries,
`sampled_finish` adds the targets' share of the queries' gradients, and `sampled_negatives` makes the tiles again for
the gradients of the negatives' rows. Logits are kept in units of log 2.

Shapes: G groups of `size` consecutive queries, m negatives a group, d width, r queries and c negatives of a tile.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from longview.ops.softmax_loss.triton_tile import INVERSE_LOG2, Tile, load_rows, load_some_rows, store_rows

SMALL = 16  # rows a program takes where there is no product

# By padded width, for 2-byte products: forward, gradient of the negatives.
TILES = {
    64: (Tile(128, 64, 4, 3), Tile(128, 128, 4, 4)),
    128: (Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
    256: (Tile(128, 64, 8, 4), Tile(64, 128, 8, 3)),
    512: (Tile(64, 32, 8, 3), Tile(64, 64, 8, 2)),
}
WIDE_TILE = Tile(32, 32, 4, 1)  # float32 products use no tensor core


def tiles_for(padded: int, wide: bool) -> tuple[Tile, Tile]:
    """Return the tiles of the forward kernel and of the gradient of the negatives."""
    return (WIDE_TILE, WIDE_TILE) if wide else TILES[max(64, padded)]


@triton.jit(do_not_specialize=["n"])
def sampled_targets(
    queries, items, targets, target_log_q, wanted,
    n, factor,
    LOG_Q: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Write the logit of each query's target, less log q, in units of log 2."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    target_r = tl.load(targets + row, mask=row < n, other=0)
    query_rd = load_rows(queries, row, n, WIDTH, PADDED).to(tl.float32)
    target_rd = load_some_rows(items, target_r, row < n, WIDTH, PADDED).to(tl.float32)
    wanted_r = tl.sum(query_rd * target_rd, 1) * factor
    if LOG_Q:
        wanted_r -= tl.load(target_log_q + row, mask=row < n, other=0.0) / INVERSE_LOG2
    tl.store(wanted + row, wanted_r, mask=row < n)


@triton.jit(do_not_specialize=["n", "size", "m"])
def sampled_forward(
    queries, items, targets, wanted, negatives, negative_log_q, logs, losses, shares, mixes,
    n, size, m, factor,
    MIX: tl.constexpr, GATHER: tl.constexpr, LOG_Q: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Write losses and log2-sum-exps; with MIX also p_target - 1 and sum_j p_j x_j over the negatives, (n, d).

    `items` is the table with GATHER, else the rows of the negatives, (G m, d).
    """
    group = tl.program_id(1)
    row = group * size + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    stop = tl.minimum((group + 1) * size, n)
    query_rd = load_rows(queries, row, stop, WIDTH, PADDED)
    target_r = tl.load(targets + row, mask=row < stop, other=0).to(tl.int32)
    wanted_r = tl.load(wanted + row, mask=row < stop, other=0.0)
    # The target is a candidate, so every row starts from a finite largest logit, whatever is left out.
    top_r = wanted_r
    total_r = tl.zeros([ROWS], tl.float32)  # of the negatives alone
    mix_rd = tl.zeros([ROWS, PADDED], tl.float32)
    first = group.to(tl.int64) * m
    for start in tl.range(0, m, ITEMS):
        at = start + tl.arange(0, ITEMS)
        item_c = tl.load(negatives + first + at, mask=at < m, other=0)
        source_c = item_c if GATHER else first + at
        item_cd = load_some_rows(items, source_c, at < m, WIDTH, PADDED)
        logit_rc = tl.dot(query_rd, tl.trans(item_cd), input_precision="ieee") * factor
        if LOG_Q:
            log_q_c = tl.load(negative_log_q + first + at, mask=at < m, other=0.0)
            logit_rc -= (log_q_c / INVERSE_LOG2)[None, :]
        left_out = (item_c.to(tl.int32)[None, :] == target_r[:, None]) | (at >= m)[None, :]
        logit_rc = tl.where(left_out, float("-inf"), logit_rc)
        higher_r = tl.maximum(top_r, tl.max(logit_rc, 1))
        p_rc = tl.exp2(logit_rc - higher_r[:, None])
        shrink_r = tl.exp2(top_r - higher_r)
        total_r = total_r * shrink_r + tl.sum(p_rc, 1)
        if MIX:
            mix_rd = tl.dot(p_rc.to(item_cd.dtype), item_cd, mix_rd * shrink_r[:, None], input_precision="ieee")
        top_r = higher_r
    all_r = total_r + tl.exp2(wanted_r - top_r)
    tl.store(logs + row, top_r + tl.log2(all_r), mask=row < stop)
    # Differences before the logarithm, or a small loss would drown in the last digits of large logits.
    tl.store(losses + row, (tl.log2(all_r) + (top_r - wanted_r)) * INVERSE_LOG2, mask=row < stop)
    if MIX:
        # Without the difference, which would lose the digits of a share near 1.
        tl.store(shares + row, -total_r / all_r, mask=row < stop)
        store_rows(mixes, row, stop, mix_rd / all_r[:, None], WIDTH, PADDED)


@triton.jit(do_not_specialize=["n"])
def sampled_finish(
    mixes, items, targets, shares, grad_queries,
    n, weight,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Write the queries' gradients * weight: sum_j p_j x_j + (p_target - 1) x_target."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    target_r = tl.load(targets + row, mask=row < n, other=0)
    share_r = tl.load(shares + row, mask=row < n, other=0.0)
    target_rd = load_some_rows(items, target_r, row < n, WIDTH, PADDED).to(tl.float32)
    grad_rd = load_rows(mixes, row, n, WIDTH, PADDED) + share_r[:, None] * target_rd
    store_rows(grad_queries, row, n, grad_rd * weight, WIDTH, PADDED)


@triton.jit(do_not_specialize=["n", "size", "m"])
def sampled_negatives(
    queries, items, targets, negatives, negative_log_q, logs, grad_loss, grad_negatives,
    n, size, m, factor, weight,
    GATHER: tl.constexpr, LOG_Q: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Write the gradient of each negative's row, (G m, d), times weight * grad_loss. `items` as in the forward."""
    group = tl.program_id(1)
    at = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    first = group.to(tl.int64) * m
    item_c = tl.load(negatives + first + at, mask=at < m, other=0)
    source_c = item_c if GATHER else first + at
    item_cd = load_some_rows(items, source_c, at < m, WIDTH, PADDED)
    log_q_c = tl.zeros([ITEMS], tl.float32)
    if LOG_Q:
        log_q_c = tl.load(negative_log_q + first + at, mask=at < m, other=0.0) / INVERSE_LOG2
    grad_cd = tl.zeros([ITEMS, PADDED], tl.float32)
    stop = tl.minimum((group + 1) * size, n)
    for start in tl.range(group * size, stop, ROWS):
        row = start + tl.arange(0, ROWS)
        query_rd = load_rows(queries, row, stop, WIDTH, PADDED)
        log_r = tl.load(logs + row, mask=row < stop, other=float("inf"))  # 2^-inf: rows past the end add nothing
        target_r = tl.load(targets + row, mask=row < stop, other=-1).to(tl.int32)
        logit_cr = tl.dot(item_cd, tl.trans(query_rd), input_precision="ieee") * factor
        if LOG_Q:
            logit_cr -= log_q_c[:, None]
        p_cr = tl.exp2(logit_cr - log_r[None, :])
        p_cr = tl.where(item_c.to(tl.int32)[:, None] == target_r[None, :], 0.0, p_cr)
        grad_cd = tl.dot(p_cr.to(query_rd.dtype), query_rd, grad_cd, input_precision="ieee")
    grad_cd *= weight * tl.load(grad_loss)
    store_rows(grad_negatives + first * WIDTH, at, m, grad_cd, WIDTH, PADDED)


def shipped() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Return what is worth compiling ahead: (name, kernel, signature, constants, options)."""
    found = []
    for width, tiles in TILES.items():
        for log_q in (False, True):
            for backward, tile in enumerate(tiles):
                name = f"sampled {'backward' if backward else 'forward'} d={width} log_q={log_q}"
                kernel, signature = (sampled_negatives, BACKWARD) if backward else (sampled_forward, FORWARD)
                sizes = {"ROWS": tile.rows, "ITEMS": tile.items, "WIDTH": width, "PADDED": width}
                flags = {"GATHER": not log_q, "LOG_Q": log_q} | ({} if backward else {"MIX": True})
                options = {"num_warps": tile.warps, "num_stages": tile.stages}
                found.append((name, kernel, signature, flags | sizes, options))
    return found


FORWARD = {
    "queries": "*bf16", "items": "*bf16", "targets": "*i64", "wanted": "*fp32", "negatives": "*i64",
    "negative_log_q": "*fp32", "logs": "*fp32", "losses": "*fp32", "shares": "*fp32", "mixes": "*fp32",
    "n": "i32", "size": "i32", "m": "i32", "factor": "fp32",
}  # fmt: skip
BACKWARD = {
    "queries": "*bf16", "items": "*bf16", "targets": "*i64", "negatives": "*i64", "negative_log_q": "*fp32",
    "logs": "*fp32", "grad_loss": "*fp32", "grad_negatives": "*fp32",
    "n": "i32", "size": "i32", "m": "i32", "factor": "fp32", "weight": "fp32",
}  # fmt: skip
