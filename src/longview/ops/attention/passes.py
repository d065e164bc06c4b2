"""One pass over sequences of one shape, tile by tile: the arithmetic of the CPU path.

Shape suffixes: N sequences x heads (or, where a block stands for several, those blocks), R rows of a block,
C columns of a tile, D dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longview.ops.attention.lanes import Scratch
from longview.ops.attention.tile_bias import TileBias
from longview.ops.attention.tiles import Block, Tile


@dataclass(frozen=True, slots=True)
class Part:
    """Sequences of one shape: `tensors` (N, length, D), inputs then outputs; `stamps` (sequences, length) or None.

    N is 1 where blocks stand for several.
    """

    heads: int
    blocks: tuple[Block, ...]
    tensors: tuple[Tensor, ...]
    stamps: Tensor | None


@dataclass(frozen=True, slots=True)
class Scale:
    """Factors of the scores (alpha) and of the sum (1 / scale_length)."""

    alpha: float
    out: float


def forward_part(part: Part, scale: Scale, bias: TileBias | None, scratch: Scratch) -> None:
    """Write out of q, k, v, out."""
    q, k, v, out = part.tensors
    for block in part.blocks:
        sum_ = scratch.take("sum", (q.shape[0], block.count * block.height, v.shape[2]))[0]
        for number, tile in enumerate(block.tiles):
            z_NRC, z_flat, _ = _scores(part, _rows(q, block, tile), k, block, tile, scale, bias, scratch)
            torch.ops.aten.silu_(z_flat)
            weight_NRC = _masked(z_NRC, tile)
            v_NCD = _columns(v, block, tile)
            _folded(sum_, block, tile).baddbmm_(weight_NRC, v_NCD, beta=min(number, 1), alpha=scale.out)
        if block.tiles:
            _all_rows(out, block).copy_(sum_)


def backward_part(part: Part, scale: Scale, bias: TileBias | None, scratch: Scratch) -> None:
    """Write d_q and add to d_k and d_v, of q, k, v, d_out, d_q, d_k, d_v."""
    q, k, v, d_out, d_q, d_k, d_v = part.tensors
    for block in part.blocks:
        sum_ = scratch.take("sum", (q.shape[0], block.count * block.height, q.shape[2]))[0]
        for number, tile in enumerate(block.tiles):
            q_NRD, d_out_NRD = _rows(q, block, tile), _rows(d_out, block, tile)
            k_NCD, v_NCD = _columns(k, block, tile), _columns(v, block, tile)
            z_NRC, z_flat, bucket = _scores(part, q_NRD, k, block, tile, scale, bias, scratch)
            # One buffer holds the weights, then their gradient, then that of the scores.
            held_NRC, held_flat = scratch.take("held", tuple(z_NRC.shape))
            torch.ops.aten.silu.out(z_flat, out=held_flat)
            weight_NRC = _masked(held_NRC, tile)
            part_NCD, _ = scratch.take("part", tuple(v_NCD.shape))
            torch.bmm(weight_NRC.mT, d_out_NRD, out=part_NCD)
            _add_columns(d_v, part_NCD, block, tile, scale.out)
            held_NRC.baddbmm_(d_out_NRD, v_NCD.mT, beta=0, alpha=scale.out)
            torch.ops.aten.silu_backward.grad_input(held_flat, z_flat, grad_input=held_flat)
            d_z_NRC = _masked(held_NRC, tile)
            if bias is not None:
                bias.collect(_by_head(d_z_NRC, part.heads), block, tile, bucket)
            part_NCD, _ = scratch.take("part", tuple(k_NCD.shape))
            torch.bmm(d_z_NRC.mT, q_NRD, out=part_NCD)
            _add_columns(d_k, part_NCD, block, tile, scale.alpha)
            _folded(sum_, block, tile).baddbmm_(d_z_NRC, k_NCD, beta=min(number, 1), alpha=scale.alpha)
        if block.tiles:
            _all_rows(d_q, block).copy_(sum_)


def _scores(
    part: Part,
    q_NRD: Tensor,
    k: Tensor,
    block: Block,
    tile: Tile,
    scale: Scale,
    bias: TileBias | None,
    scratch: Scratch,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the scores of a tile, the same flat in whole lanes, and the time buckets where there is a bias."""
    z_NRC, flat = scratch.take("scores", (*q_NRD.shape[:2], tile.width))
    z_NRC.baddbmm_(q_NRD, _columns(k, block, tile).mT, beta=0, alpha=scale.alpha)
    bucket = None if bias is None else bias.add(_by_head(z_NRC, part.heads), block, tile, part.stamps)
    return z_NRC, flat, bucket


def _all_rows(x: Tensor, block: Block) -> Tensor:
    return x.narrow(1, block.start, block.count * block.height)


def _rows(x: Tensor, block: Block, tile: Tile) -> Tensor:
    """Return the rows that meet a tile: those of all blocks at once, or block by block where the tile moves."""
    return _folded(_all_rows(x, block), block, tile)


def _folded(x: Tensor, block: Block, tile: Tile) -> Tensor:
    return x[0].view(block.count, block.height, -1) if tile.moves else x


def _columns(x: Tensor, block: Block, tile: Tile) -> Tensor:
    """Return the columns of a tile; where it moves, of each block's, which overlap."""
    if not tile.moves:
        return x.narrow(1, tile.start, tile.width)
    return _windows(x, block, tile.start, tile.width)


def _windows(x: Tensor, block: Block, start: int, width: int) -> Tensor:
    reach = (block.count - 1) * block.height + width
    return x[0].narrow(0, start, reach).unfold(0, width, block.height).mT


def _add_columns(total: Tensor, part_NCD: Tensor, block: Block, tile: Tile, factor: float) -> None:
    if not tile.moves:
        total.narrow(1, tile.start, tile.width).add_(part_NCD, alpha=factor)
        return
    for at in range(0, tile.width, block.height):  # pieces so narrow that those of neighbouring blocks do not overlap
        width = min(block.height, tile.width - at)
        _windows(total, block, tile.start + at, width).add_(part_NCD.narrow(1, at, width), alpha=factor)


def _masked(x_NRC: Tensor, tile: Tile) -> Tensor:
    for edge in tile.edges:
        keep = edge.keep if edge.keep.dtype == x_NRC.dtype else edge.keep.to(x_NRC.dtype)
        x_NRC.narrow(2, edge.start, edge.stop - edge.start).mul_(keep)
    return x_NRC


def _by_head(x_NRC: Tensor, heads: int) -> Tensor:
    return x_NRC.view(-1, heads, *x_NRC.shape[1:])
