"""Which blocks of a jagged batch the kernels work on: lists made on the device, without waiting for it.

A block of query rows or of keys never crosses from one region of its sequence (context, history, newest rows or
prefix keys, targets) to the next. The host knows only bounds of how many blocks there are; a vacant entry begins
with -1.

An entry holds all a kernel must know of its block, so that one read of 32 bytes starts its work. Its first five
numbers (int32) are: first row or key of the block within its sequence; where the sequence begins in the batch; its
length; where its context and its history end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from longview.ops.attention.mask import MaskSpec

VACANT = -1
_longest: WeakIdKeyDictionary = WeakIdKeyDictionary()


def declare_longest(lengths: Tensor, longest: int) -> Tensor:
    """Return `lengths` (batch,), of which none exceeds `longest` from now on: nobody waits for a device to learn it."""
    _longest[lengths] = longest
    return lengths


def longest_of(lengths: Tensor) -> int:
    """Return the largest of some lengths, or what was declared to be no less; without that a GPU is waited for."""
    declared: int | None = _longest.get(lengths)  # type: ignore[no-untyped-call]
    if declared is not None:
        return declared
    return int(lengths.max()) if lengths.numel() else 0


def none_negative(*numbers: Tensor) -> Tensor:
    """Return whether none of all the numbers is negative, a bool scalar on their device."""
    return (torch.cat(numbers) >= 0).all()


def demand(fits: Tensor, words: str) -> None:
    """Stop with `words` where `fits`, a bool scalar, is false: at once on a CPU; a GPU, before what is launched next.

    Nobody waits, and it may be part of a CUDA graph, whose every replay then looks again. A GPU prints the words; the
    next call that waits for it raises a RuntimeError, and the process cannot go on with the device.

    Raises:
        RuntimeError: on a CPU.
    """
    torch._assert_async(fits, words)


@dataclass(frozen=True, eq=False)
class Shape:
    """The lengths of a batch, on its device.

    Attributes:
        offsets: (batch + 1,) int64.
        context, targets: (batch,) int64 tokens in front and at the end, or None for none.
        total: tokens of all sequences.
        max_context: the longest context; 0 without.
        query_offsets: (batch + 1,) int64 where only the newest tokens of each sequence ask, or None for all of them.
        total_queries: how many ask.
    """

    offsets: Tensor
    context: Tensor | None
    targets: Tensor | None
    total: int
    max_context: int
    query_offsets: Tensor | None = None
    total_queries: int = 0

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

    def fits(self) -> Tensor:
        """Return whether a kernel that believes these lengths stays within its tensors, a bool scalar on the device."""
        context, end, length = self.regions
        ends = [self.offsets[:1], self.offsets[-1:] - self.total]
        slack = [length]
        if self.context is not None:
            slack += [context, self.max_context - context]
        if self.targets is not None:
            slack.append(length - end)
        if len(slack) > 1:
            slack.append(end - context)
        if self.query_offsets is not None:
            asked = self.query_offsets.diff()
            ends += [self.query_offsets[:1], self.query_offsets[-1:] - self.total_queries]
            slack += [asked, length - asked]
        return none_negative(*slack, *ends, *(-x for x in ends))

    def demand(self) -> None:
        """Stop where the batch does not fit; see `demand`."""
        words = f"attention: offsets must rise from 0 to {self.total}, the tokens of q"
        if self.query_offsets is not None:
            words += f", query_offsets from 0 to {self.total_queries}, with no more queries than tokens"
        if self.context is not None or self.targets is not None:
            words += "; context_lengths and target_lengths must not be negative and leave no sequence short"
        demand(self.fits(), words)

    def entries(self, sequence: Tensor, first: Tensor, *more: Tensor) -> Tensor:
        """Return (count, 8) int32 entries of blocks; `sequence` -1 makes a vacant one. `more`: up to three columns."""
        context, end, length = self.regions
        place = sequence.clamp(min=0)
        known = [self.offsets[:-1][place], length[place], context[place], end[place]] if self.batch else [first] * 4
        columns = [torch.where(sequence < 0, VACANT, first), *known, *more]
        columns += [torch.zeros_like(first)] * (8 - len(columns))
        return torch.stack(columns, 1).to(torch.int32)


def row_items(shape: Shape, mask: MaskSpec, size: int) -> Tensor:
    """Return an entry for every block of at most `size` rows that ask, (count, 8) int32, the longest work first.

    Its sixth number is what to add to a row's place in its sequence for its place among the queries.
    Where every block sees about as many keys they stay in order, so that neighbours share keys in the cache.
    """
    context, end, length = shape.regions
    newest = end
    if mask.local_window and mask.recent:
        limited = end - context >= mask.local_window
        newest = torch.where(limited, torch.maximum(end - mask.recent, context), end)
    starts, stops = [torch.zeros_like(context), context, newest, end], [context, newest, end, length]
    shift = shape.offsets[:-1]  # what to add to a row's place in its sequence for its place in q
    if shape.query_offsets is not None:
        silent = length - shape.query_offsets.diff()
        starts, shift = [torch.maximum(start, silent) for start in starts], shape.query_offsets[:-1] - silent
    total = shape.total if shape.query_offsets is None else shape.total_queries
    sequence, first = _blocks(starts, stops, size, _bound(shape, total, 4, size))
    if not mask.local_window or mask.recent or shape.targets is not None:
        # A block's last row sees about as many keys as lie before it, unless a window limits it.
        place = sequence.clamp(min=0)
        work = first
        if mask.local_window:
            inside = (first >= context[place]) & (first < newest[place])
            work = torch.where(inside, work.clamp(max=mask.local_window + mask.global_size), work)
        order = torch.where(sequence < 0, -1, work).argsort(descending=True, stable=True)
        sequence, first = sequence[order], first[order]
    return shape.entries(sequence, first, shift[sequence.clamp(min=0)] if shape.batch else first)


@dataclass(frozen=True, eq=False)
class KeyItems:
    """Blocks of keys, and for those that nearly every row sees, slices of these rows.

    Attributes:
        items: (count, 8) int32 entries, then first and last row of the slice, and where its partial sums go (-1: it
            is all of the block's rows, and the result is written at once).
        sums: (blocks, 8) int32 entries of the sliced blocks, then the first partial sum and how many.
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
    lists, sums, slots = [], torch.empty(0, 8, dtype=torch.int32, device=context.device), 0
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
        lists.append(shape.entries(chosen, first[block], start, start + slice_rows, slot))
        sums = shape.entries(torch.where(slices > 1, sequence, VACANT), first, last - slices, slices)
    bounds = (
        ([shared, end], [end, length]) if sliced else ([zero, context, shared, end], [context, shared, end, length])
    )
    sequence, first = _blocks(*bounds, size, _bound(shape, shape.total, len(bounds[0]), size))
    whole = length[sequence.clamp(min=0)]
    whole = -(-whole // rows) * rows
    lists.append(shape.entries(sequence, first, torch.zeros_like(first), whole, torch.full_like(first, VACANT)))
    if not mask.local_window:
        work = torch.where(sequence < 0, -1, whole - first)
        lists[-1] = lists[-1][work.argsort(descending=True, stable=True)]
    return KeyItems(torch.cat(lists), sums, slots)


def _bound(shape: Shape, total: int, regions: int, size: int) -> int:
    used = 1 + (shape.context is not None) + (shape.targets is not None) + (regions > 1)
    return total // size + used * shape.batch


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
