"""The relative bias of the CPU path: added to one tile of scores, and its gradient gathered from one.

The position bias of a tile is a Toeplitz matrix, so it is a strided view of one short vector per head, and its
gradient the sums along diagonals. The time bias is looked up pair by pair.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from longview.ops.attention.bias import time_buckets
from longview.ops.attention.tiles import Block, Tile


class TileBias:
    """Adds `position` (heads, distances) and `time` (heads, buckets) to tiles, and sums their gradients.

    `longest` bounds the positions of the sequences.
    """

    def __init__(self, position: Tensor | None, time: Tensor | None, longest: int) -> None:
        self._position, self._time, self._longest = position, time, longest
        if position is not None:
            self._distance = torch.arange(1 - longest, longest).abs_().clamp_(max=position.shape[1] - 1)
            self._by_offset = position[:, self._distance]  # (heads, offsets): entry longest - 1 + (j - i)
            self._offset_gradient = torch.zeros_like(self._by_offset)
        self._time_gradient = None if time is None else torch.zeros_like(time)

    def of_heads(self, first: int, stop: int) -> TileBias:
        """Return the bias of heads `first:stop`; its gradients are summed apart until `absorb`."""
        part = copy(self)
        if self._position is not None:
            part._by_offset = self._by_offset[first:stop]
            part._offset_gradient = torch.zeros_like(part._by_offset)
        if self._time is not None:
            part._time = self._time[first:stop]
            part._time_gradient = torch.zeros_like(part._time)
        return part

    def absorb(self, part: TileBias, first: int, stop: int) -> None:
        """Add the gradients of a part returned by `of_heads(first, stop)`."""
        if self._position is not None:
            self._offset_gradient[first:stop] += part._offset_gradient
        if self._time_gradient is not None and part._time_gradient is not None:
            self._time_gradient[first:stop] += part._time_gradient

    def add(self, scores: Tensor, block: Block, tile: Tile, stamps: Tensor | None) -> Tensor | None:
        """Add to `scores` (sequences, heads, rows, columns) in place; return the time buckets, for `collect`.

        `stamps` (sequences, length) are the timestamps, or None without time bias.
        """
        if self._position is not None:
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
        if self._position is not None:
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
        if self._position is None:
            return None, self._time_gradient
        position = torch.zeros_like(self._position)
        return position.index_add_(1, self._distance, self._offset_gradient), self._time_gradient

    def _toeplitz(self, block: Block, tile: Tile) -> Tensor:
        heads, stride = self._by_offset.shape[0], self._by_offset.stride(0)
        shape = (heads, block.stop - block.start, tile.stop - tile.start)
        start = self._by_offset.storage_offset() + self._first_offset(block, tile)
        return self._by_offset.as_strided(shape, (stride, 1, 1), start).flip(1)

    def _first_offset(self, block: Block, tile: Tile) -> int:
        return self._longest - 1 + tile.start - (block.stop - 1)
