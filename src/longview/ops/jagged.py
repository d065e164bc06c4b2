"""Jagged tensors: values of all sequences end to end, and `offsets` that say where each begins."""

from __future__ import annotations

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
