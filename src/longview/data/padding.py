"""Batches filled up to a few fixed shapes, for what is recorded once for a shape and repeated: CUDA graphs.

Padding is tokens of item 0 at the end of a batch, in sequences of their own that no real token sees. `counted` is
false for them too, so that the loss leaves them out and their gradients are zero. Where requests are ranked, the last
of them are candidates of which nothing is known.

A model that selects rows (truncation, streams) keeps a fixed number of them, too: `fixed_size`, with what is missing
again in sequences of its own (`models.layout`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.errors import InputError

STEPS = 16  # sizes between two powers of two are multiples of the larger one's sixteenth: padding is under an eighth
SELECTED_STEPS = 8  # the same of rows that a model selects: the fewer, the fewer shapes in all
SMALLEST = 16  # columns stay aligned to 16 numbers, which kernels read at once
COLUMNS = ("items", "timestamps", "actions", "targets", "strengths")  # that have an entry a token


class Capacity(NamedTuple):
    """The shape of a padded batch: `tokens` of `sequences`, of which some may be empty, `candidates` among them."""

    tokens: int
    sequences: int
    candidates: int = 0


def capacity_for(batch: JaggedBatch, max_length: int) -> Capacity:
    """Return the shape that `batch` is padded to, one of few, with at least one token of padding.

    It depends on the batch's sizes alone, so that a resumed run meets the same shapes. `max_length` is that of a
    sequence of padding.

    Example:
        >>> capacity_for(JaggedBatch(torch.zeros(1000, dtype=torch.int64), torch.tensor([0, 400, 1000])), 600)
        Capacity(tokens=1024, sequences=16, candidates=0)
    """
    real = 0 if batch.labels is None else len(batch.labels)
    candidates, apart = _rounded(real) if real else (0, 0)
    tokens, step = _rounded(batch.num_tokens + candidates - real + 1)
    sequences = _rounded(batch.num_sequences + -(-(step + apart) // max_length))[0]
    return Capacity(tokens, sequences, candidates)


def fixed_size(rows: int) -> int:
    """Return how many rows stand for the `rows` that a model selects of a padded batch: as many, or somewhat more.

    Example:
        >>> fixed_size(0), fixed_size(130), fixed_size(256)
        (16, 160, 256)
    """
    return _rounded(max(rows, 1), SELECTED_STEPS)[0]


def vacant_sequences(size: int, longest: int) -> int:
    """Return how many sequences of up to `longest` rows hold what a `fixed_size` may have more than was selected."""
    return -(-_step(size, SELECTED_STEPS) // longest)


def _rounded(size: int, steps: int = STEPS) -> tuple[int, int]:
    """Return the next size up that is used, and how far used sizes near it lie apart."""
    step = _step(size, steps)
    return -(-size // step) * step, step


def _step(size: int, steps: int) -> int:
    return max(SMALLEST, (1 << (size - 1).bit_length()) // steps)


def padded(batch: JaggedBatch, capacity: Capacity, max_length: int, candidates: int = 0) -> JaggedBatch:
    """Return a batch on the CPU filled up to `capacity`, with `counted`; no sequence of padding exceeds `max_length`.

    Sequences of padding come after the real ones, then empty ones. A timestamp of padding is that of the last event.
    No real sequence has more than `max_length` events and `candidates` behind them.

    Raises:
        InputError: a batch that does not fit.
    """
    extra = capacity.tokens - batch.num_tokens
    vacant = capacity.sequences - batch.num_sequences
    more = capacity.candidates - (0 if batch.labels is None else len(batch.labels))
    if batch.num_tokens < 1 or not 0 <= more <= extra <= vacant * max_length or vacant < 0:
        raise InputError(
            f"a batch of {batch.num_tokens} tokens in {batch.num_sequences} sequences cannot be padded to "
            f"{capacity.tokens} in {capacity.sequences} with sequences of at most {max_length}"
        )
    ends = (batch.num_tokens + max_length * torch.arange(1, vacant + 1)).clamp(max=capacity.tokens)
    columns: dict[str, Any] = {
        name: _filled(name, getattr(batch, name), extra) for name in COLUMNS if getattr(batch, name) is not None
    }
    columns["offsets"] = torch.cat([batch.offsets, ends])
    if batch.context is not None:
        columns["context"] = _filled("context", batch.context, vacant)
    if batch.target_lengths is not None and batch.labels is not None:
        ahead = (ends - (capacity.tokens - more)).clamp(min=0)  # the last tokens of all are candidates
        columns["target_lengths"] = torch.cat([batch.target_lengths, ahead.diff(prepend=ahead.new_zeros(1))])
        unknown = batch.labels.new_full((more, batch.labels.shape[1]), torch.nan)
        columns["labels"] = torch.cat([batch.labels, unknown])
    counted = batch.items.new_ones(batch.num_tokens, dtype=torch.bool) if batch.counted is None else batch.counted
    filled = replace(batch, **columns, counted=_filled("counted", counted, extra))
    # Of the shape, not of the batch: nothing depends on what is in it.
    vars(filled)["max_length"] = max_length + candidates
    return filled


def _filled(name: str, column: Tensor, extra: int) -> Tensor:
    """Return a column with `extra` more entries; a zero would be a time far from all others."""
    more = column[-1:].expand(extra) if name == "timestamps" else column.new_zeros(extra, *column.shape[1:])
    return torch.cat([column, more])
