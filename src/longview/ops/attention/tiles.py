"""The tiles of score matrix that a sequence needs: what the CPU path visits, and no more.

A block of consecutive rows sees a few ranges of columns: those every row of the block sees need no mask, those
only some rows see (the edges) carry one. The number of tiles grows with the length, never with its square,
where the mask is windowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from longview.ops.attention.mask import MaskSpec

ROWS = 64  # of a block: a wider one wastes more of its window's edges, a narrower one feeds the matrix unit less
COLUMNS = 512  # of a tile: ROWS x COLUMNS float32 scores of a few heads stay in a core's second-level cache
ALIGN = 16  # column ranges start at a multiple of this, so that score rows keep their alignment

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Edge:
    """Columns `start:stop` of a tile that only some rows see; `keep` (rows, stop - start) is one where they do."""

    start: int
    stop: int
    keep: Tensor


@dataclass(frozen=True, slots=True)
class Tile:
    """Columns `start:stop` that the rows of a block see, all of them outside the edges."""

    start: int
    stop: int
    edges: tuple[Edge, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Rows `start:stop` of a sequence and the tiles they see, which do not overlap."""

    start: int
    stop: int
    tiles: tuple[Tile, ...]


@lru_cache(maxsize=512)
def blocks_of(mask: MaskSpec, c: int, h: int, t: int) -> tuple[Block, ...]:
    """Return the blocks of a sequence of c context, h history and t target tokens; their tiles cover the mask."""
    edges: dict[object, Tensor | None] = {}
    return tuple(
        Block(start, stop, tuple(_tiles(mask, (c, h, t), start, stop, edges)))
        for region_start, region_stop in _regions(mask, c, h, t)
        for start, stop in _cut(region_start, region_stop, ROWS)
    )


def visited(mask: MaskSpec, c: int, h: int, t: int) -> int:
    """Return how many scores the tiles hold: what the CPU path computes, against `mask.pairs` that count."""
    return visits(blocks_of(mask, c, h, t))


def visits(blocks: Iterable[Block]) -> int:
    """Return how many scores the tiles of `blocks` hold."""
    return sum((block.stop - block.start) * (tile.stop - tile.start) for block in blocks for tile in block.tiles)


def spans(mask: MaskSpec, c: int, h: int, t: int, row: int) -> list[Span]:
    """Return the column ranges that one row sees; together they are row `row` of `mask.dense(c, h, t)`.

    Within a region (`_regions`) both ends of each range never decrease from row to row, and move by one or not at
    all but at a target's group.
    """
    if row < c:
        return [(0, c + h if mask.context_rows == "bidirectional" else row + 1)]
    if row < c + h:
        x = row - c
        if mask.local_window == 0 or x >= h - newest_rows(mask, h):
            return [(0, row + 1)]
        near = mask.context_visible or x + 1 < mask.local_window
        sinks = (0 if near else c, c + min(mask.prefix(c), x + 1))
        return [sinks, (c + max(x + 1 - mask.local_window, 0), row + 1)]
    first = row - (row - c - h) % mask.target_group
    group = (first, row + 1 if mask.target_self else row)
    reach = mask.target_reach
    if reach is None:
        return [(0, c + h), group]
    near = mask.context_visible or h < reach
    return [(0 if near else c, c + min(mask.prefix(c), h)), (c + max(h - reach, 0), c + h), group]


def newest_rows(mask: MaskSpec, h: int) -> int:
    """Return how many newest of `h` history rows see more than their window."""
    return mask.recent if 0 < mask.local_window <= h else 0


def _regions(mask: MaskSpec, c: int, h: int, t: int) -> Iterator[Span]:
    """Cut a sequence where the form of `spans` changes."""
    bounds = {0, c, c + h - min(newest_rows(mask, h), h), c + h, c + h + t}
    if not mask.context_visible and mask.local_window:
        bounds.add(c + min(mask.local_window - 1, h))
    ordered = sorted(bounds)
    return pairwise(ordered)


def _tiles(
    mask: MaskSpec, lengths: tuple[int, int, int], start: int, stop: int, edges: dict[object, Tensor | None]
) -> Iterator[Tile]:
    first, last = spans(mask, *lengths, start), spans(mask, *lengths, stop - 1)
    seen = [(a[0], b[1]) for a, b in zip(first, last, strict=True) if a[0] < b[1]]
    full = sorted((b[0], a[1]) for a, b in zip(first, last, strict=True) if b[0] < a[1])
    for left, right in _merged([(max(lo - lo % ALIGN, 0), hi) for lo, hi in seen]):
        for column, end in _cut(left, right, COLUMNS):
            partial = []
            for lo, hi in _outside(full, column, end):
                shape = [(a, b) for a, b in zip(first, last, strict=True) if a[0] < hi and b[1] > lo]
                # Blocks whose spans lie alike around an edge share its mask.
                relative = tuple((x - start, y - start) for s in shape for x, y in s)
                key = (start >= sum(lengths[:2]), stop - start, lo - start, hi - start, relative)
                if key not in edges:
                    rows, columns = torch.arange(start, stop), torch.arange(lo, hi)
                    visible = mask.visible(rows[:, None], columns[None, :], *lengths)
                    edges[key] = None if bool(visible.all()) else visible.float()
                keep = edges[key]
                if keep is not None:
                    partial.append(Edge(lo - column, hi - column, keep))
            yield Tile(column, end, tuple(partial))


def _cut(start: int, stop: int, size: int) -> Iterator[Span]:
    return ((at, min(at + size, stop)) for at in range(start, stop, size))


def _merged(ranges: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for lo, hi in sorted(ranges):
        if merged and lo <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(hi, merged[-1][1]))
        else:
            merged.append((lo, hi))
    return merged


def _outside(full: list[Span], start: int, stop: int) -> Iterator[Span]:
    """Yield the parts of `start:stop` that no range of `full` (sorted) covers."""
    for lo, hi in full:
        if start < min(lo, stop):
            yield start, min(lo, stop)
        start = max(start, hi)
    if start < stop:
        yield start, stop
