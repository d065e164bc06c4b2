"""The relative bias of the CPU path: added to one tile of scores, and its gradient gathered from one.

The position bias of a tile is a Toeplitz matrix, so it is a strided view of one short vector per head, and its
gradient the sums along diagonals. The time bias is looked up pair by pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longview.ops.attention.bias import time_buckets
from longview.ops.attention.tiles import Block, Tile


class TileBias:
    """Adds `position` (heads, distances) and `time` (heads, buckets) to tiles, and sums their gradients."""

    def __init__(self, position: Tensor | None, time: Tensor | None, longest: int, dtype: torch.dtype) -> None:
        self._longest, self._time = longest, None if time is None else time.to(dtype)
        self._by_offset: Tensor | None = None  # (heads, 2 * longest - 1): entry longest - 1 + (j - i)
        self._time_gradient = None if self._time is None else torch.zeros_like(self._time)
        if position is not None:
            offset = torch.arange(1 - longest, longest).abs_().clamp_(max=position.shape[1] - 1)
            self._by_offset, self._distance = position.to(dtype)[:, offset], offset
            self._offset_gradient = torch.zeros_like(self._by_offset)
            self._distances = position.shape[1]

    def add(self, scores: Tensor, block: Block, tile: Tile, stamps: Tensor | None) -> Tensor | None:
        """Add to `scores` (sequences, heads, rows, columns) in place; return the time buckets, for `collect`.

        `stamps` (sequences, length) are the timestamps, or None without time bias.
        """
        if self._by_offset is not None:
            scores += self._toeplitz(block, tile)
        if self._time is None or stamps is None:
            return None
        rows, columns = stamps[:, block.start : block.stop], stamps[:, tile.start : tile.stop]
        bucket = time_buckets(rows[:, :, None] - columns[:, None, :], self._time.shape[1])
        for head, table in enumerate(self._time):
            scores[:, head] += table.index_select(0, bucket.view(-1)).view(bucket.shape)
        return bucket

    def collect(self, gradient: Tensor, block: Block, tile: Tile, bucket: Tensor | None) -> None:
        """Add the gradient of a tile's scores (sequences, heads, rows, columns) to the tables' gradients."""
        if self._by_offset is not None:
            first, heads, rows, columns = self._first_offset(block, tile), *gradient.shape[1:]
            # Row i of the flipped tile, moved i to the right, has equal offsets one below the other.
            moved = gradient.new_zeros(heads, rows, columns + rows)
            moved[:, :, :columns] = gradient.sum(0).flip(1)
            width = columns + rows - 1
            diagonals = moved.as_strided((heads, rows, width), (rows * (width + 1), width, 1)).sum(1)
            self._offset_gradient[:, first : first + width] += diagonals
        if self._time_gradient is not None and bucket is not None:
            flat = bucket.view(-1)
            for head, total in enumerate(self._time_gradient):
                total += torch.bincount(flat, gradient[:, head].reshape(-1), total.numel())

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of the position and the time table."""
        if self._by_offset is None:
            return None, self._time_gradient
        position = self._by_offset.new_zeros(self._by_offset.shape[0], self._distances)
        return position.index_add_(1, self._distance, self._offset_gradient), self._time_gradient

    def _toeplitz(self, block: Block, tile: Tile) -> Tensor:
        assert self._by_offset is not None
        heads, stride = self._by_offset.shape
        shape = (heads, block.stop - block.start, tile.stop - tile.start)
        flipped = self._by_offset.as_strided(shape, (stride, 1, 1), self._first_offset(block, tile))
        return flipped.flip(1)

    def _first_offset(self, block: Block, tile: Tile) -> int:
        return self._longest - 1 + tile.start - (block.stop - 1)
