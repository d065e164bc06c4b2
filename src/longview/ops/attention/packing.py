"""How the CPU path lays a jagged batch out: sequences of one shape side by side, so that one product serves all.

Short sequences are copied into groups `(sequences x heads, padded length, dimension)`; the padded length follows
from the sequence alone, so the shapes it meets, and with them its bits, do not depend on its company. Long ones
are worked on one by one, in place. Padded rows are zeros: a zero value adds nothing to any sum, so keys need no
mask, and the rows of padded queries are dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from longview.ops.attention.mask import MaskSpec
from longview.ops.attention.tiles import Block, blocks_of, newest_rows

LONG = 512  # tokens; a longer sequence fills the machine by itself
BUCKET = 32  # short histories are padded to a multiple of this

Lengths = tuple[int, int, int]  # context, history, targets


@dataclass(frozen=True, slots=True)
class Group:
    """`count` sequences of one padded shape, at rows `start:start + count * heads * length` of the packed buffer."""

    start: int
    count: int
    length: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Long:
    """One sequence worked on in place: tokens `start:stop` of the batch."""

    start: int
    stop: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Packing:
    """The layout of one batch.

    Attributes:
        groups, longs: what there is to compute.
        rows: rows of the packed buffer of all groups, each one token of one head.
        source: (rows,) int64, the (token x heads + head) that a packed row holds; anything at padded rows.
        vacant: int64, the packed rows that hold no token.
        tokens: int64, the tokens of all groups in batch order, or None where that is all tokens.
        packed: (tokens x heads,) int64, the packed row of each of them.
    """

    groups: tuple[Group, ...]
    longs: tuple[Long, ...]
    rows: int
    source: Tensor
    vacant: Tensor
    tokens: Tensor | None
    packed: Tensor

    def pack(self, x_THD: Tensor) -> Tensor:
        """Return the packed buffer (rows, D) of tokens (T, heads, D), zeros at padded rows."""
        flat = x_THD.reshape(-1, x_THD.shape[2])
        return flat.index_select(0, self.source).index_fill_(0, self.vacant, 0)

    def unpack(self, packed: Tensor, out_THD: Tensor) -> None:
        """Write the packed rows (rows, D) to their tokens in `out_THD` (T, heads, D), which is contiguous."""
        if self.tokens is None:
            torch.index_select(packed, 0, self.packed, out=out_THD.view(-1, packed.shape[1]))
        else:
            rows = packed.index_select(0, self.packed)
            out_THD.index_copy_(0, self.tokens, rows.view(-1, *out_THD.shape[1:]))


@lru_cache(maxsize=8)
def packing_of(mask: MaskSpec, sequences: tuple[Lengths, ...], heads: int, exact: bool) -> Packing:
    """Lay out sequences of the given lengths. `exact` keeps every token at its own distance (for a bias)."""
    longs: list[Long] = []
    members: dict[Lengths, list[int]] = defaultdict(list)
    starts, token = [], 0
    for at, (c, h, t) in enumerate(sequences):
        starts.append(token)
        token += c + h + t
        if c + h + t > LONG:
            longs.append(Long(starts[at], token, blocks_of(mask, c, h, t)))
        elif c + h + t:
            members[c, padded_history(mask, c, h, t, exact), t].append(at)
    groups, row = [], 0
    first_row, length, shift = ([0] * len(sequences) for _ in range(3))
    for padded, indices in members.items():
        groups.append(Group(row, len(indices), sum(padded), blocks_of(mask, *padded)))
        for at in indices:
            first_row[at], length[at], shift[at] = row, sum(padded), padded[1] - sequences[at][1]
            row += heads * sum(padded)
    tokens, packed = _rows_of_tokens(sequences, (starts, first_row, length, shift), heads)
    source = torch.full((row,), -1)
    source[packed] = (tokens[:, None] * heads + torch.arange(heads)).flatten()
    vacant = (source < 0).nonzero()[:, 0]
    everything = tokens.numel() == token
    return Packing(
        tuple(groups), tuple(longs), row, source.clamp_(min=0), vacant, None if everything else tokens, packed
    )


def _rows_of_tokens(sequences: Sequence[Lengths], layout: tuple[list[int], ...], heads: int) -> tuple[Tensor, Tensor]:
    """Return the tokens of the groups, and (tokens x heads,) the packed row of each: history is padded behind,
    so targets (and nothing else) move by `shift`."""
    start, first_row, length, shift = (torch.tensor(values, dtype=torch.int64) for values in layout)
    size = torch.tensor([sum(lengths) for lengths in sequences], dtype=torch.int64)
    before_targets = torch.tensor([c + h for c, h, _ in sequences], dtype=torch.int64)
    size = torch.where(length > 0, size, 0)  # long sequences have no row
    sequence = torch.repeat_interleave(size)
    position = torch.arange(sequence.numel()) - (size.cumsum(0) - size)[sequence]
    moved = position + torch.where(position >= before_targets[sequence], shift[sequence], 0)
    packed = (first_row[sequence] + moved)[:, None] + length[sequence, None] * torch.arange(heads)
    return start[sequence] + position, packed.flatten()


def padded_history(mask: MaskSpec, c: int, h: int, t: int, exact: bool) -> int:
    """Return the history length that stands in for `h`: the next multiple of `BUCKET` where the mask of the real
    rows is the same there, `h` itself where it is not."""
    padded = -(-h // BUCKET) * BUCKET
    newest_rows_differ = newest_rows(mask, padded) > 0
    reach = mask.target_reach
    targets_differ = t > 0 and (exact or (reach is not None and padded >= reach))
    return h if newest_rows_differ or targets_differ else padded
