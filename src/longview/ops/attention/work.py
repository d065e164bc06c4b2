"""Which blocks of a jagged batch the kernels work on: lists made on the device, without waiting for it.

A block of query rows or of keys never crosses from one region of its sequence (context, history, newest rows or
prefix keys, targets) to the next. The host knows only bounds of how many blocks there are; vacant entries say -1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from longview.ops.attention.mask import MaskSpec

VACANT = -1


@dataclass(frozen=True, eq=False)
class Shape:
    """The lengths of a batch, on its device.

    Attributes:
        offsets: (batch + 1,) int64.
        context, targets: (batch,) int64 tokens in front and at the end, or None for none.
        total: tokens of all sequences.
        max_context: the longest context; 0 without.
    """

    offsets: Tensor
    context: Tensor | None
    targets: Tensor | None
    total: int
    max_context: int

    @property
    def batch(self) -> int:
        return self.offsets.numel() - 1

    @cached_property
    def regions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return where, within each sequence, context and history end, and its length; (batch,) int64 each."""
        length = self.offsets.diff()
        context = torch.zeros_like(length) if self.context is None else self.context.to(torch.int64)
        end = length if self.targets is None else length - self.targets
        return context, end, length


def row_items(shape: Shape, mask: MaskSpec, size: int) -> Tensor:
    """Return (count, 2) int32: sequence and first row of every block of at most `size` rows, the longest work first.

    Where every block sees about as many keys they stay in order, so that neighbours share keys in the cache.
    """
    context, end, length = shape.regions
    newest = end
    if mask.local_window and mask.recent:
        limited = end - context >= mask.local_window
        newest = torch.where(limited, torch.maximum(end - mask.recent, context), end)
    starts, stops = [torch.zeros_like(context), context, newest, end], [context, newest, end, length]
    sequence, first = _blocks(starts, stops, size, _bound(shape, 4, size))
    if not mask.local_window or mask.recent or shape.targets is not None:
        # A block's last row sees about as many keys as lie before it, unless a window limits it.
        place = sequence.clamp(min=0)
        work = first.clone()
        if mask.local_window:
            inside = (first >= context[place]) & (first < newest[place])
            work[inside] = work[inside].clamp(max=mask.local_window + mask.global_size)
        work[sequence < 0] = -1
        order = work.argsort(descending=True, stable=True)
        sequence, first = sequence[order], first[order]
    return torch.stack([sequence, first], 1).to(torch.int32)


@dataclass(frozen=True, eq=False)
class KeyItems:
    """Blocks of keys, and for those that nearly every row sees, slices of these rows.

    Attributes:
        items: (count, 5) int32: sequence, first key, first and last row of the slice, and where its partial sums go
            (-1: it is all of the block's rows, and the result is written at once).
        sums: (blocks, 4) int32: sequence, first key, first partial sum and how many, of every sliced block.
        slots: how many partial sums there may be.
    """

    items: Tensor
    sums: Tensor
    slots: int


def key_items(shape: Shape, mask: MaskSpec, size: int, rows: int, slice_rows: int) -> KeyItems:
    """Return the blocks of at most `size` keys; `rows` is the height of the row tiles they walk over.

    Keys of the context and of the prefix are seen by all rows after them, thousands of times as many as others in a
    long history, so their rows are cut into slices of `slice_rows` (a multiple of `rows`).
    """
    context, end, length = shape.regions
    prefix = mask.global_size if mask.global_mode == "prefix" else 0
    shared = context
    if prefix:
        counted = (prefix - context).clamp(min=0) if mask.prefix_counts_context else prefix
        shared = torch.minimum(context + counted, end)
    zero = torch.zeros_like(context)
    sliced = bool(mask.local_window) and (prefix > 0 or shape.context is not None)
    lists, sums, slots = [], torch.empty(0, 4, dtype=torch.int32, device=context.device), 0
    if sliced:
        per_sequence = -(-prefix // size) + -(-shape.max_context // size)
        sequence, first = _blocks([zero, context], [context, shared], size, per_sequence * shape.batch)
        place = sequence.clamp(min=0)
        slices = torch.where(sequence < 0, 0, -(-length[place] // slice_rows))
        last = slices.cumsum(0)
        slots = per_sequence * (shape.total // slice_rows + shape.batch)
        block, number = _spread(last, slots)
        real = block >= 0
        block = block.clamp(min=0)
        # One slice alone is the whole: it needs no partial sum.
        slot = torch.where(slices[block] > 1, torch.arange(slots, device=first.device), VACANT)
        start = number * slice_rows
        chosen = torch.where(real, sequence[block], VACANT)
        lists.append(torch.stack([chosen, first[block], start, start + slice_rows, slot], 1))
        begin = last - slices
        sums = torch.stack([torch.where(slices > 1, sequence, VACANT), first, begin, slices], 1).to(torch.int32)
    bounds = ([shared, end], [end, length]) if sliced else ([zero, context, shared, end], [context, shared, end, length])
    sequence, first = _blocks(*bounds, size, _bound(shape, len(bounds[0]), size))
    whole = length[sequence.clamp(min=0)]
    whole = -(-whole // rows) * rows
    lists.append(torch.stack([sequence, first, torch.zeros_like(first), whole, torch.full_like(first, VACANT)], 1))
    if not mask.local_window:
        work = torch.where(sequence < 0, -1, whole - first)
        lists[-1] = lists[-1][work.argsort(descending=True, stable=True)]
    return KeyItems(torch.cat(lists).to(torch.int32), sums, slots)


def _bound(shape: Shape, regions: int, size: int) -> int:
    used = 1 + (shape.context is not None) + (shape.targets is not None) + (regions > 1)
    return shape.total // size + used * shape.batch


def _blocks(starts: list[Tensor], stops: list[Tensor], size: int, bound: int) -> tuple[Tensor, Tensor]:
    """Return sequence and first token, (bound,) int64 each, of the blocks of the regions `starts:stops`."""
    start, stop = torch.stack(starts, 1).flatten(), torch.stack(stops, 1).flatten()
    last = (-(-(stop - start) // size)).clamp(min=0).cumsum(0)
    region, number = _spread(last, bound)
    sequence = torch.where(region < 0, VACANT, region // len(starts))
    return sequence, torch.where(region < 0, 0, start[region.clamp(min=0)] + number * size)


def _spread(last: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """Return for each of `bound` places which group it falls in (-1: none is left) and its number there.

    `last` is the running sum of the groups' sizes.
    """
    place = torch.arange(bound, device=last.device)
    if last.numel() == 0:
        return torch.full_like(place, VACANT), place
    group = torch.searchsorted(last, place, right=True)
    found = group.clamp(max=last.numel() - 1)
    before = torch.where(found > 0, last[(found - 1).clamp(min=0)], 0)
    return torch.where(group < last.numel(), group, VACANT), place - before
