"""Batches filled up to a few fixed shapes, for what is recorded once for a shape and repeated: CUDA graphs.

Padding is tokens of item 0 at the end of a batch, in sequences of their own that no real token sees. `counted` is
false for them, so that the loss leaves them out and their gradients are zero.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.errors import InputError

STEPS = 16  # sizes between two powers of two are multiples of the larger one's sixteenth: padding is under an eighth
SMALLEST = 16  # columns stay aligned to 16 numbers, which kernels read at once
COLUMNS = ("items", "timestamps", "actions", "targets", "strengths")  # that have an entry an event


class Capacity(NamedTuple):
    """The shape of a padded batch: `tokens` of `sequences`, some of which may be empty."""

    tokens: int
    sequences: int


def capacity_for(batch: JaggedBatch, max_length: int) -> Capacity:
    """Return the shape that `batch` is padded to, one of few, with at least one token of padding.

    It depends on the batch's two sizes alone, so that a resumed run meets the same shapes. `max_length` is that of
    a sequence of padding.

    Example:
        >>> capacity_for(JaggedBatch(torch.zeros(1000, dtype=torch.int64), torch.tensor([0, 400, 1000])), 600)
        Capacity(tokens=1024, sequences=16)
    """
    tokens, step = _rounded(batch.num_tokens + 1)
    return Capacity(tokens, _rounded(batch.num_sequences + -(-step // max_length))[0])


def _rounded(size: int) -> tuple[int, int]:
    """Return the next size up that is used, and how far used sizes near it lie apart."""
    step = max(SMALLEST, (1 << (size - 1).bit_length()) // STEPS)
    return -(-size // step) * step, step


def padded(batch: JaggedBatch, capacity: Capacity, max_length: int) -> JaggedBatch:
    """Return a batch on the CPU filled up to `capacity`, with `counted`; no sequence is longer than `max_length`.

    Sequences of padding come after the real ones, then empty ones. A timestamp of padding is that of the last event.

    Raises:
        InputError: a batch that does not fit, or has tokens that are no events.
    """
    extra = capacity.tokens - batch.num_tokens
    vacant = capacity.sequences - batch.num_sequences
    if batch.num_tokens < 1 or not 0 <= extra <= vacant * max_length or vacant < 0:
        raise InputError(
            f"a batch of {batch.num_tokens} tokens in {batch.num_sequences} sequences cannot be padded to "
            f"{capacity.tokens} in {capacity.sequences} with sequences of at most {max_length}"
        )
    ends = (batch.num_tokens + max_length * torch.arange(1, vacant + 1)).clamp(max=capacity.tokens)
    if batch.context is not None or batch.target_lengths is not None or batch.labels is not None:
        raise InputError("a batch with context or candidates cannot be padded: their tokens are no events")
    columns = {name: _filled(name, getattr(batch, name), extra) for name in COLUMNS if getattr(batch, name) is not None}
    filled = replace(
        batch,
        **columns,
        offsets=torch.cat([batch.offsets, ends]),
        counted=torch.arange(capacity.tokens) < batch.num_tokens,
    )
    vars(filled)["max_length"] = max_length  # of the shape, not of the batch: nothing depends on what is in it
    return filled


def _filled(name: str, column: Tensor, extra: int) -> Tensor:
    """Return a column of the tokens with `extra` more; a zero would be a time far from all others."""
    more = column[-1:].expand(extra) if name == "timestamps" else column.new_zeros(extra, *column.shape[1:])
    return torch.cat([column, more])
