"""Attention truncation: layers over the whole history, then more layers over its newest tokens alone.

Source: ULTRA-HSTU, arXiv 2602.16986 (N1 layers over everything; the newest L' history tokens, with all context and
targets, go through N2 more). `targets: second` is the arrangement Meta released: the long stage reads no targets, so
that it is computed once a user and shared by all requests. `streams.py` has the other topology, and takes stacks of
either kind. Shape suffixes: T tokens of all sequences, B sequences, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from longview.config import Config
from longview.data.padding import fixed_size
from longview.models.hstu import HSTULayer, HSTUStack
from longview.models.layer_config import AttentionConfig, LayerConfig
from longview.models.layout import Hidden, Layout
from longview.ops.embedding import embedding_lookup
from longview.ops.jagged import history_ages, positions, segment_ids, take_rows


class TruncationConfig(Config):
    """The second stage of a truncated stack. `scale_length`, where the layer leaves it out, is `length`."""

    length: int = Field(ge=1, description="newest history events that go through the second stage")
    layers: int = Field(ge=1, description="layers of the second stage; the paper has about twice those of the first")
    attention: AttentionConfig = Field(default=AttentionConfig(), description="of the second stage; default all keys")
    targets: Literal["both", "second"] = Field(
        default="both", description="stages that read candidates; second: the long stage is shared by all requests"
    )
    positions: bool = Field(
        default=False,
        description="learned, counted back from the newest event, added before the second stage: keeps a state exact",
    )


class TruncatedStack(nn.Module):
    """`first` over all tokens, then `second` over the newest `length` history tokens, all context and all targets.

    Nothing is padded: what is cut off is gone from the batch. A sequence no longer than `length` is not cut.
    """

    def __init__(self, first: HSTUStack, second: HSTUStack, truncation: TruncationConfig, width: int) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.length, self.targets = truncation.length, truncation.targets
        self.positions = nn.Embedding(truncation.length, width) if truncation.positions else None
        if self.positions is not None:
            nn.init.trunc_normal_(self.positions.weight, std=math.sqrt(1 / width), a=-1.0, b=1.0)

    def hidden(self, x_TD: Tensor, layout: Layout) -> Hidden:
        """Return the vectors of the kept tokens; which they are is `Hidden.rows` (None where none was cut)."""
        x_TD, kept, rows = self.truncate(self.long_stage(x_TD, layout), layout)
        return Hidden(self.second(self.placed(x_TD, kept), kept), kept, rows)

    def newest(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Return (B, width), the newest history row of each sequence."""
        x_TD, kept, _ = self.truncate(self.long_stage(x_TD, layout), layout)
        return self.second.newest(self.placed(x_TD, kept), kept)

    def long_stage(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Return the input of the second stage for every token, (T, width), before any is cut off."""
        if self.targets == "both" or layout.target_lengths is None:
            return self.first(x_TD, layout)  # type: ignore[no-any-return]
        rows, early = layout.without_targets(len(x_TD))
        return x_TD.index_copy(0, rows, self.first(take_rows(x_TD, rows), early))

    def truncate(self, x_TD: Tensor, layout: Layout) -> tuple[Tensor, Layout, Tensor | None]:
        """Return the tokens that go on, their layout and their rows (None = all, known without looking)."""
        if layout.max_length <= self.length:
            return x_TD, layout, None
        rows, kept = layout.newest(len(x_TD), self.length)
        return take_rows(x_TD, rows), kept, rows

    def sizes(self, layout: Layout) -> dict[str, int]:
        """Return how many rows the selections of `hidden` are to keep of a padded batch, whose layout is on the CPU."""
        if layout.max_length <= self.length:
            return {}
        history = layout.history_lengths()
        kept = layout.offsets.diff() - history + history.clamp(max=self.length)
        return {"newest": fixed_size(int(kept.sum()))}

    def placed(self, x_TD: Tensor, kept: Layout) -> Tensor:
        """Return the input of the second stage: history tokens with their position, if that is on."""
        if self.positions is None:
            return x_TD
        ages = history_ages(kept.offsets, len(x_TD), kept.target_lengths)
        is_history = ages >= 0
        if kept.context_lengths is not None:
            segments = segment_ids(kept.offsets, len(x_TD))
            is_history &= positions(kept.offsets, len(x_TD)) >= kept.context_lengths[segments]
        added = look_up(self.positions.weight, ages.clamp(min=0, max=self.length - 1))
        return x_TD + (added * is_history[:, None]).to(x_TD.dtype)


def look_up(table: Tensor, rows: Tensor) -> Tensor:
    """Return the rows of `table`; on a GPU with a gradient that is summed in one order."""
    return embedding_lookup(table, rows) if table.is_cuda else F.embedding(rows, table)


@dataclass(frozen=True)
class Body:
    """What all layers of a model share, and the stacks made of it."""

    width: int
    heads: int
    dropout: float
    layer: LayerConfig

    def plain(self, layers: int, max_length: int, attention: AttentionConfig) -> HSTUStack:
        """Return `layers` layers that differ in nothing but their weights and what backward computes again."""
        return HSTUStack(
            [
                HSTULayer(self.width, self.heads, max_length, self.dropout, self.layer.at(place), attention)
                for place in range(layers)
            ]
        )

    def stack(
        self, layers: int, max_length: int, attention: AttentionConfig, truncation: TruncationConfig | None
    ) -> HSTUStack | TruncatedStack:
        """Return a stack of one stage, or of two."""
        first = self.plain(layers, max_length, attention)
        if truncation is None:
            return first
        second = self.plain(truncation.layers, truncation.length, truncation.attention)
        return TruncatedStack(first, second, truncation, self.width)
