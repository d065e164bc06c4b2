"""From events to the input of the first layer: item, position and time-gap embeddings, added."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from longview.config import Config
from longview.data.batches import JaggedBatch
from longview.ops.dropout import dropout
from longview.ops.embedding import embedding_lookup
from longview.ops.jagged import positions_from_end, segment_ids

LOG_BUCKET = 0.301  # width of a time bucket in natural-log units, as in HSTU's relative bias


class InputEmbedding(nn.Module):
    """Item id table plus learned position (counted back from the newest event) and time-gap embeddings.

    Counting back keeps a position's meaning when the history is cut to its newest events. With the attribute
    `sparse_items` the gradient of the item table is a sparse tensor, for `ops.embedding.RowwiseOptimiser`.

    Source: HSTU, arXiv 2402.17152 (embedding scaled by √d); time buckets as in its relative bias.
    """

    class Config(Config):
        positions: bool = True
        time_gaps: Literal["none", "previous", "newest"] = Field(
            default="none",
            description="bucketed log of the time since the previous event, or until the newest event of the history",
        )
        num_time_buckets: int = Field(default=64, ge=2)
        scale: bool = Field(default=True, description="multiply item embeddings by √width before positions are added")
        std: float = Field(default=0.02, gt=0, description="standard deviation of the initial item table")
        dropout: float = Field(default=0.2, ge=0, lt=1)
        event_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of events whose item is hidden")

    def __init__(self, config: InputEmbedding.Config, num_items: int, width: int, max_length: int) -> None:
        super().__init__()
        self.config, self.sparse_items = config, False
        self.items = nn.Embedding(num_items, width)
        nn.init.trunc_normal_(self.items.weight, std=config.std, a=-2 * config.std, b=2 * config.std)
        self.positions = nn.Embedding(max_length, width) if config.positions else None
        self.time_gaps = nn.Embedding(config.num_time_buckets, width) if config.time_gaps != "none" else None
        for table in (self.positions, self.time_gaps):
            if table is not None:
                nn.init.trunc_normal_(table.weight, std=math.sqrt(1 / width), a=-1.0, b=1.0)
        self.factor = math.sqrt(width) if config.scale else 1.0

    def forward(self, batch: JaggedBatch) -> Tensor:
        """Return (total, width)."""
        x_TD = _rows(self.items, batch.items, sparse=self.sparse_items) * self.factor
        if self.training and self.config.event_dropout:
            kept = torch.rand(x_TD.shape[0], 1, device=x_TD.device) >= self.config.event_dropout
            x_TD = x_TD * kept
        if self.positions is not None:
            x_TD = x_TD + _rows(self.positions, positions_from_end(batch.offsets, batch.num_tokens))
        if self.time_gaps is not None and batch.timestamps is not None:
            x_TD = x_TD + _rows(self.time_gaps, self._gap_buckets(batch.timestamps, batch.offsets))
        return dropout(x_TD, self.config.dropout, self.training)

    def _gap_buckets(self, timestamps: Tensor, offsets: Tensor) -> Tensor:
        if self.config.time_gaps == "newest":
            gaps = timestamps[offsets[1:] - 1][segment_ids(offsets, timestamps.numel())] - timestamps
        else:
            gaps = timestamps.diff(prepend=timestamps[:1])
            first = offsets[:-1][offsets.diff() > 0] if not offsets.is_cuda else offsets[:-1]
            gaps = gaps.index_fill(0, first.clamp(max=timestamps.numel() - 1), 0)
        buckets = (gaps.clamp(min=1).to(torch.float32).log() / LOG_BUCKET).long()
        return buckets.clamp(max=self.config.num_time_buckets - 1)


def _rows(table: nn.Embedding, ids: Tensor, *, sparse: bool = False) -> Tensor:
    """Return the rows of `table` at `ids` (n,); on a GPU with a gradient that is summed in one order."""
    if sparse or table.weight.is_cuda:
        return embedding_lookup(table.weight, ids.long(), sparse=sparse)
    # Torch's own gradient has another order of sums than ours, and results on a CPU are promised bit for bit.
    rows: Tensor = table(ids)
    return rows
