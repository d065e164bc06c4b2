"""Jagged tensors: values of all sequences end to end, and `offsets` that say where each begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def offsets_from_lengths(lengths: Tensor) -> Tensor:
    """Return `offsets` (batch + 1,) int64 for `lengths` (batch,).

    Example:
        >>> offsets_from_lengths(torch.tensor([2, 0, 3])).tolist()
        [0, 2, 2, 5]
    """
    offsets = lengths.new_zeros(lengths.numel() + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return offsets


def segment_ids(offsets: Tensor, total: int | None = None) -> Tensor:
    """Return the sequence number of every token, (total,) int64. `total` avoids a device synchronisation."""
    lengths = offsets.diff()
    numbers = torch.arange(lengths.numel(), device=offsets.device)
    return torch.repeat_interleave(numbers, lengths, output_size=total)


def positions(offsets: Tensor, total: int | None = None) -> Tensor:
    """Return the position of every token counted from the start of its sequence, (total,) int64."""
    segments = segment_ids(offsets, total)
    return torch.arange(segments.numel(), device=offsets.device) - offsets[segments]


def positions_from_end(offsets: Tensor, total: int | None = None) -> Tensor:
    """Return the position of every token counted back from the newest of its sequence (newest = 0)."""
    segments = segment_ids(offsets, total)
    return offsets[segments + 1] - 1 - torch.arange(segments.numel(), device=offsets.device)


def last_rows(values: Tensor, offsets: Tensor) -> Tensor:
    """Return the newest row of every (non-empty) sequence, (batch, ...)."""
    return values[offsets[1:] - 1]


def to_padded(values: Tensor, offsets: Tensor, max_length: int) -> Tensor:
    """Return (batch, max_length, ...) with `values` at the front of each row and zeros behind.

    Only the dense path pads; models never do.
    """
    batch = offsets.numel() - 1
    rows = segment_ids(offsets, values.shape[0]) * max_length + positions(offsets, values.shape[0])
    padded = values.new_zeros(batch * max_length, *values.shape[1:])
    return padded.index_copy(0, rows, values).view(batch, max_length, *values.shape[1:])


def from_padded(padded: Tensor, offsets: Tensor, total: int) -> Tensor:
    """Undo `to_padded`: return (total, ...)."""
    max_length = padded.shape[1]
    rows = segment_ids(offsets, total) * max_length + positions(offsets, total)
    return padded.reshape(-1, *padded.shape[2:])[rows]


def history_ages(offsets: Tensor, total: int, target_lengths: Tensor | None = None) -> Tensor:
    """Return how far every token lies before the newest history token of its sequence, (total,) int64.

    Sequences are `[context | history | targets]`: the newest history token has age 0 and targets -1, -2, …; context
    tokens are older than the oldest history token.

    Example:
        >>> history_ages(torch.tensor([0, 4]), 4, torch.tensor([1])).tolist()
        [2, 1, 0, -1]
    """
    ages = positions_from_end(offsets, total)
    return ages if target_lengths is None else ages - target_lengths[segment_ids(offsets, total)]


def newest_members(
    offsets: Tensor,
    total: int,
    length: int,
    context_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
) -> Tensor:
    """Return which tokens belong to the newest `length` of their history, or to context or targets, (total,) bool."""
    members = history_ages(offsets, total, target_lengths) < length
    if context_lengths is not None:
        members |= positions(offsets, total) < context_lengths[segment_ids(offsets, total)]
    return members


def rows_where(members: Tensor, count: int, fill: int = 0) -> Tensor:
    """Return the `count` rows that are true in `members` (total,), ascending, without waiting for a device.

    `count` must be how many there are, or more: then row `fill` stands in the places behind.
    """
    place = torch.where(members, members.cumsum(0) - 1, count)
    rows = place.new_full((count + 1,), fill)
    rows[place] = torch.arange(members.numel(), device=members.device)  # the last place takes what is left out
    return rows[:count]


def counts_within(members: Tensor, offsets: Tensor) -> Tensor:
    """Return how many tokens of each sequence are true in `members` (total,): (batch,) int64."""
    running = torch.cat([offsets.new_zeros(1), members.cumsum(0)])
    return running[offsets].diff()


def take_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return `values[rows]`; its gradient is a copy, with no sum to order.

    Rows are all different, but for those whose gradient is zero.
    """
    taken: Tensor = _TakeRows.apply(values, rows)  # type: ignore[no-untyped-call]
    return taken


def concat_rows(first: Tensor, second: Tensor, first_total: int, second_total: int) -> Tensor:
    """Return the rows of `torch.cat([a, b])` that put each sequence of b behind the same sequence of a.

    Args:
        first, second: (batch + 1,) offsets of a and b.
        first_total, second_total: their tokens.

    Example:
        >>> concat_rows(torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2]), 3, 2).tolist()
        [0, 1, 3, 2, 4]
    """
    merged = first.new_empty(first_total + second_total)
    numbers = torch.arange(first_total + second_total, device=first.device)
    segments = segment_ids(first, first_total), segment_ids(second, second_total)
    merged[numbers[:first_total] + second[segments[0]]] = numbers[:first_total]
    merged[numbers[:second_total] + first[segments[1] + 1]] = numbers[first_total:]
    return merged


def rows_of(offsets: Tensor, sequences: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of the chosen `sequences` (n,) int64, one after another, and their offsets (n + 1,).

    Example:
        >>> rows_of(torch.tensor([0, 2, 3, 5]), torch.tensor([2, 0]))
        (tensor([3, 4, 0, 1]), tensor([0, 2, 4]))
    """
    lengths = offsets.diff()[sequences]
    chosen = offsets_from_lengths(lengths)
    shift = torch.repeat_interleave(offsets[sequences] - chosen[:-1], lengths)
    return torch.arange(shift.numel(), device=offsets.device) + shift, chosen


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = values.shape
        return values.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.shape).index_copy_(0, rows, grads[0].contiguous()), None
