"""Context tokens: what is known of a user, one token a feature, in front of the history."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from longview.data.schema import Feature
from longview.models.layout import Hidden, Layout
from longview.ops.attention.work import declare_longest
from longview.ops.embedding import embedding_lookup
from longview.ops.jagged import concat_rows, take_rows


class ContextTokens(nn.Module):
    """A table with a row for each value of each feature; code 0, "unknown", starts at zero: it says nothing."""

    def __init__(self, features: Sequence[Feature], width: int) -> None:
        super().__init__()
        sizes = torch.tensor([0, *(feature.num_codes for feature in features)])
        starts = sizes.cumsum(0)
        self.table = nn.Embedding(int(starts[-1]), width)
        nn.init.trunc_normal_(self.table.weight, std=math.sqrt(1 / width), a=-1.0, b=1.0)
        with torch.no_grad():
            self.table.weight[starts[:-1]] = 0
        self.num_features = len(features)
        self.starts: Tensor
        self.register_buffer("starts", starts[:-1], persistent=False)

    def forward(self, codes: Tensor | None, batch: int) -> Tensor:
        """Return (batch · features, width) for `codes` (batch, features) int64; None is unknown throughout."""
        if codes is None:
            codes = self.starts.new_zeros(batch, self.num_features)
        rows = (codes + self.starts).reshape(-1)
        tokens: Tensor = embedding_lookup(self.table.weight, rows) if rows.is_cuda else self.table(rows)
        return tokens


def put_in_front(context: Tensor, events: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
    """Return the sequences `[context | events]` and their layout.

    Args:
        context: (batch · c, width), c tokens of each sequence in order.
        events: (total, width), which `layout` describes: history and targets, no context.
    """
    order, joined = layout_in_front(context.shape[0], events.shape[0], layout)
    return torch.cat([context.to(events.dtype), events])[order], joined


def layout_in_front(count: int, total: int, layout: Layout) -> tuple[Tensor, Layout]:
    """Return the order of `count` context tokens, as many of each sequence, and `total` others, and their layout."""
    batch, device = layout.offsets.numel() - 1, layout.offsets.device
    each = count // batch
    front = torch.arange(batch + 1, device=device) * each
    order = concat_rows(front, layout.offsets, count, total)
    return order, Layout(
        offsets=layout.offsets + front,
        max_length=layout.max_length + each,
        timestamps=_join(layout.timestamps, count, order),
        context_lengths=declare_longest(torch.full_like(layout.offsets[1:], each), each),
        target_lengths=layout.target_lengths,
        actions=_join(layout.actions, count, order),
        num_context=count,
        num_targets=layout.num_targets,
        sizes=layout.sizes,
    )


def without_context(hidden: Hidden) -> tuple[Tensor, Tensor | None]:
    """Return the vectors of events and targets, and which of the batch's tokens each is (None = all, in order)."""
    layout = hidden.layout
    if layout.context_lengths is None:
        return hidden.values, hidden.rows
    counts = layout.offsets.diff() - layout.context_lengths
    kept = torch.arange(len(hidden.values) - layout.num_context, device=counts.device)
    kept = kept + torch.repeat_interleave(layout.context_lengths.cumsum(0), counts, output_size=kept.numel())
    values = take_rows(hidden.values, kept)
    if hidden.rows is None:
        return values, None
    # A row counts the context of its own and all earlier sequences, as `kept` does, whatever was cut off between.
    return values, hidden.rows[kept] - (kept - torch.arange(kept.numel(), device=kept.device))


def _join(values: Tensor | None, count: int, order: Tensor) -> Tensor | None:
    """Return `values` of the events with zeros for the `count` context tokens."""
    return None if values is None else torch.cat([values.new_zeros(count), values])[order]
