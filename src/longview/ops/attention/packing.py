"""How the CPU path lays a jagged batch out: sequences of one shape side by side, so that one product serves all.

Short sequences are copied into chunks `(sequences x heads, padded length, dimension)` that stay in cache; the
padded length follows from the sequence alone, so the shapes it meets, and with them its bits, do not depend on its
company. Long ones are worked on one by one, in place. Padded rows are zeros: a zero value adds nothing to any sum,
so padded keys need no mask, and the rows of padded queries are dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from longview.ops.attention import tiles
from longview.ops.attention.mask import MaskSpec
from longview.ops.attention.tiles import Block, blocks_of, newest_rows, runs_of, visits

BUCKET = 32  # short histories are padded to a multiple of this
CACHED = 256 * 1024  # scores of a chunk's widest tile: with their gradients, about what a core or two hold close by

Lengths = tuple[int, int, int]  # context, history, targets


@dataclass(frozen=True, slots=True)
class Rows:
    """A view of (T, heads, D) as a matrix of rows; row `token * ratio + head` holds a head of a token."""

    matrix: Tensor
    ratio: int

    @classmethod
    def of(cls, x_THD: Tensor) -> Rows:
        """View `x_THD`; only where its heads do not lie side by side, as slices of one projection do, copy it."""
        tokens, heads, dim = x_THD.shape
        ratio, rest = divmod(x_THD.stride(0), dim)
        if tokens == 0 or rest or x_THD.stride()[1:] != (dim, 1):
            return cls(x_THD.reshape(-1, dim), heads)
        return cls(x_THD.as_strided(((tokens - 1) * ratio + heads, dim), (dim, 1)), ratio)


@dataclass(frozen=True, slots=True)
class Long:
    """One sequence worked on in place: tokens `start:stop` of the batch."""

    start: int
    stop: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Short sequences of one padded length, copied to `(count x heads, length, D)`.

    Attributes:
        start: where its rows begin among the packed rows of all chunks.
        token, head: (count * heads * length,) int64, what each row holds; a vacant row repeats some token.
        vacant: int64, the rows that hold no token.
        tokens: (count, length) int64, the token of each position.
    """

    start: int
    length: int
    blocks: tuple[Block, ...]
    token: Tensor
    head: Tensor
    vacant: Tensor
    tokens: Tensor

    def gather(self, rows: Rows, out: Tensor) -> Tensor:
        """Copy this chunk's rows to `out` (rows, D) and return it as (count x heads, length, D)."""
        index = self.token * rows.ratio + self.head
        torch.index_select(rows.matrix, 0, index, out=out)
        return out.index_fill_(0, self.vacant, 0).view(-1, self.length, out.shape[1])

    def part(self, packed: Tensor) -> Tensor:
        """Return this chunk's part of `packed` (rows, D) as (count x heads, length, D)."""
        return packed.narrow(0, self.start, self.token.numel()).view(-1, self.length, packed.shape[1])


@dataclass(frozen=True, slots=True)
class Packing:
    """The layout of one batch.

    Attributes:
        rows: packed rows of all chunks.
        scores: scores the batch visits, all heads.
        longest: positions of the longest sequence, padding included.
        packed: int64, the packed row of every head of every token of the chunks, in batch order.
        target: int64, token * heads + head of each of these, or None where they are all there are.
    """

    chunks: tuple[Chunk, ...]
    longs: tuple[Long, ...]
    rows: int
    scores: int
    longest: int
    packed: Tensor
    target: Tensor | None

    def unpack(self, packed: Tensor, out_THD: Tensor) -> None:
        """Write `packed` (rows, D) to its places in `out_THD`, which is contiguous."""
        out = out_THD.view(-1, packed.shape[1])
        if self.target is None:
            torch.index_select(packed, 0, self.packed, out=out)
        else:
            out.index_copy_(0, self.target, packed.index_select(0, self.packed))


@lru_cache(maxsize=8)
def packing_of(mask: MaskSpec, sequences: tuple[Lengths, ...], heads: int, biased: bool) -> Packing:
    """Lay out sequences of the given lengths. `biased`: scores get a bias, which differs between
    blocks, and every token must keep its distance."""
    longs: list[Long] = []
    members: dict[Lengths, list[tuple[int, Lengths]]] = defaultdict(list)
    token = 0
    for c, h, t in sequences:
        size = c + h + t
        if size > tiles.LONG:
            blocks = blocks_of(mask, c, h, t) if biased else runs_of(mask, c, h, t)
            longs.append(Long(token, token + size, blocks))
        elif size:
            members[c, padded_history(mask, c, h, t, biased), t].append((token, (c, h, t)))
        token += size
    chunks: list[Chunk] = []
    rows = 0
    for padded, group in members.items():
        blocks = blocks_of(mask, *padded)
        widest = max((tile.width * block.height for block in blocks for tile in block.tiles), default=1)
        step = max(CACHED // (widest * heads), 1)
        for at in range(0, len(group), step):
            chunks.append(_chunk(group[at : at + step], padded, blocks, heads, rows))
            rows += chunks[-1].token.numel()
    longest = max([x.length for x in chunks] + [x.stop - x.start for x in longs], default=1)
    packed, target = _places(chunks, token, heads)
    scores = heads * sum(visits(x.blocks) for x in longs)
    scores += sum(x.token.numel() // x.length * visits(x.blocks) for x in chunks)
    return Packing(tuple(chunks), tuple(longs), rows, scores, longest, packed, target if longs else None)


def _places(chunks: list[Chunk], total: int, heads: int) -> tuple[Tensor, Tensor]:
    """Return the packed row of every head of every token that has one, and token * heads + head of each."""
    place = torch.full((total * heads,), -1)
    for chunk in chunks:
        row = torch.arange(chunk.start, chunk.start + chunk.token.numel())
        occupied = torch.ones(row.shape, dtype=torch.bool).index_fill_(0, chunk.vacant, False)
        place[(chunk.token * heads + chunk.head)[occupied]] = row[occupied]
    target = (place >= 0).nonzero()[:, 0]
    return place[target], target


def padded_history(mask: MaskSpec, c: int, h: int, t: int, biased: bool) -> int:
    """Return the history length that stands in for `h`: the next multiple of `BUCKET` where the mask of the real
    rows is the same there, `h` itself where it is not."""
    padded = -(-h // BUCKET) * BUCKET
    reach = mask.target_reach
    targets_differ = t > 0 and (biased or (reach is not None and padded >= reach))
    return h if newest_rows(mask, padded) or targets_differ else padded


def _chunk(
    group: Sequence[tuple[int, Lengths]], padded: Lengths, blocks: tuple[Block, ...], heads: int, first_row: int
) -> Chunk:
    real = torch.ones(len(group), 1, dtype=torch.bool)
    if len(group) * heads == 1:  # one matrix alone takes another path through the library than one of several
        group, real = [*group, *group], torch.tensor([[True], [False]])
    count, length = len(group), sum(padded)
    start = torch.tensor([token for token, _ in group])[:, None]
    history = torch.tensor([h for _, (_, h, _) in group])[:, None]
    position = torch.arange(length)[None, :]  # of the padded sequence: history is padded behind, targets move up
    is_target = position >= padded[0] + padded[1]
    vacant = ~is_target & (position >= padded[0] + history) | ~real
    tokens = start + torch.where(is_target, position - (padded[1] - history), position)
    tokens = torch.where(vacant, start, tokens)
    head = torch.arange(heads)[None, :, None].expand(count, heads, length)
    token = tokens[:, None, :].expand_as(head)
    empty = vacant[:, None, :].expand_as(head).flatten().nonzero()[:, 0]
    return Chunk(first_row, length, blocks, token.flatten(), head.flatten(), empty, tokens)
