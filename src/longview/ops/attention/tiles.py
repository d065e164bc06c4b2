"""The tiles of score matrix that a sequence needs: what the CPU path visits, and no more.

A block of consecutive rows sees a few ranges of columns: those every row of the block sees need no mask, those
only some rows see (the edges) carry one. The number of tiles grows with the length, never with its square,
where the mask is windowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from longview.ops.attention.mask import MaskSpec

ROWS = 64  # of a block: a wider one wastes more of its window's edges, a narrower one feeds the matrix unit less
TALL_ROWS = 256  # of a block that sees all before it, in a long sequence, where the waste is a small share
COLUMNS = 512  # of a tile: its scores stay in a core's second-level cache
LONG = 512  # tokens; a longer sequence is worked on by itself
TOGETHER = 128 * 1024  # scores of the equal blocks of a long sequence that are computed at once
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
    """Columns `start:stop` that the rows of a block see, all of them outside the edges.

    Where a block stands for several, the columns are those of the first, and `moves` says that they move with it.
    """

    start: int
    stop: int
    edges: tuple[Edge, ...]
    moves: bool = False

    @property
    def width(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Block:
    """Rows `start:stop` of a sequence and the tiles they see, which do not overlap.

    `count` blocks that follow each other may be one: then these are the rows of the first of them.
    """

    start: int
    stop: int
    tiles: tuple[Tile, ...]
    count: int = 1

    @property
    def height(self) -> int:
        return self.stop - self.start


@lru_cache(maxsize=512)
def blocks_of(mask: MaskSpec, c: int, h: int, t: int) -> tuple[Block, ...]:
    """Return the blocks of a sequence of c context, h history and t target tokens; their tiles cover the mask."""
    edges: dict[object, Tensor | None] = {}
    blocks = []
    for first, end in _regions(mask, c, h, t):
        sees_all = len(spans(mask, c, h, t, first)) == 1
        for start, stop in _cut(first, end, TALL_ROWS if sees_all and c + h + t > LONG else ROWS):
            blocks.append(Block(start, stop, tuple(_tiles(mask, (c, h, t), start, stop, edges))))
    return tuple(blocks)


@lru_cache(maxsize=512)
def runs_of(mask: MaskSpec, c: int, h: int, t: int) -> tuple[Block, ...]:
    """Return `blocks_of` a sequence with neighbours of one shape made one: few large products, not many small."""
    runs: list[Block] = []
    for block in blocks_of(mask, c, h, t):
        joined = _joined(runs[-1], block) if runs else None
        if joined is None:
            runs.append(block)
        else:
            runs[-1] = joined
    return tuple(runs)


def visited(mask: MaskSpec, c: int, h: int, t: int) -> int:
    """Return how many scores the tiles hold: what the CPU path computes, against `mask.pairs` that count."""
    return visits(blocks_of(mask, c, h, t))


def visits(blocks: Iterable[Block]) -> int:
    """Return how many scores the tiles of `blocks` hold."""
    return sum(block.count * block.height * tile.width for block in blocks for tile in block.tiles)


def _joined(run: Block, block: Block) -> Block | None:
    """Return `run` and the `block` after it as one, or None where they differ.

    Their tiles must lie alike: in the same columns, without an edge, or as much further as the rows are.
    """
    further = run.count * run.height
    widest = max((tile.width for tile in run.tiles), default=0)
    if block.height != run.height or len(block.tiles) != len(run.tiles):
        return None
    if (run.count + 1) * run.height * widest > TOGETHER:
        return None
    tiles = []
    for old, new in zip(run.tiles, block.tiles, strict=True):
        same = old.width == new.width and (run.count == 1 or old.moves == (new.start != old.start))
        if same and new.start == old.start + further and _alike(old.edges, new.edges):
            tiles.append(replace(old, moves=True))
        elif same and new.start == old.start and not old.edges and not new.edges:
            tiles.append(old)
        else:
            return None
    return replace(run, tiles=tuple(tiles), count=run.count + 1)


def _alike(some: tuple[Edge, ...], others: tuple[Edge, ...]) -> bool:
    return len(some) == len(others) and all(
        a.start == b.start and a.stop == b.stop and a.keep is b.keep for a, b in zip(some, others, strict=True)
    )


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
