"""From events to the input of the first layer: item, action, position and time-gap embeddings, added."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from longview.config import Config
from longview.data.batches import JaggedBatch
from longview.data.schema import Schema
from longview.errors import InputError
from longview.models.actions import ActionEmbedding, AtTargets
from longview.models.context import ContextTokens
from longview.ops.dropout import dropout
from longview.ops.embedding import Term, embedding_lookup, summed_lookup, why_not_summed
from longview.ops.jagged import history_ages, positions, segment_ids

LOG_BUCKET = 0.301  # width of a time bucket in natural-log units, as in HSTU's relative bias


@dataclass(frozen=True)
class Earlier:
    """What came before the events of a batch that continues histories.

    Attributes:
        lengths: (B,) int64 events of each history so far.
        timestamps: (B,) int64, time of the last of them (anything where there is none), or None.
    """

    lengths: Tensor
    timestamps: Tensor | None = None


class InputEmbedding(nn.Module):
    """Item id table plus what happened, learned position (counted back from the newest event) and time gap.

    Counting back keeps a position's meaning when the history is cut to its newest events; but then every new event
    moves all earlier ones, and no state of a user can be kept (`models/incremental.py`). Counted from the start (the
    last entry stands for all beyond) or left out, positions allow that. Candidates behind a history have no action and
    no position, and all have the time gap of the first, so that their order says nothing.

    `context` makes the tokens that go in front of a history, or is None. With the attribute `sparse_items` the
    gradient of the item table is a sparse tensor, for `ops.embedding.RowwiseOptimiser`.

    Source: HSTU, arXiv 2402.17152 (embedding scaled by √d); time buckets as in its relative bias.
    """

    class Config(Config):
        positions: bool | Literal["newest", "start"] = Field(
            default=True, description="learned, counted back from the newest event (true) or from the start; or none"
        )
        time_gaps: Literal["none", "previous", "newest"] = Field(
            default="none",
            description="bucketed log of the time since the previous event, or until the newest event of the history",
        )
        num_time_buckets: int = Field(default=64, ge=2)
        scale: bool = Field(default=True, description="multiply item embeddings by √width before positions are added")
        std: float = Field(default=0.02, gt=0, description="standard deviation of the initial item table")
        dropout: float = Field(default=0.2, ge=0, lt=1)
        event_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of events whose item is hidden")
        actions: Literal["none", "sum", "mlp"] = Field(
            default="none", description="add what happened to each item: a sum of embeddings, or an MLP of them"
        )
        action_at_targets: AtTargets = Field(
            default="zero", description="in its place at candidates, and where nobody knows: zero, or learned"
        )
        strength_buckets: int = Field(default=16, ge=1, description="buckets of each strength, such as a rating")
        context: tuple[str, ...] = Field(default=(), description="features of users, each a token before the history")
        context_buckets: int = Field(default=64, ge=1, description="values (or buckets of numbers) kept of a feature")

    def __init__(
        self, config: InputEmbedding.Config, num_items: int, width: int, max_length: int, schema: Schema | None = None
    ) -> None:
        super().__init__()
        schema = schema or Schema()
        _check_schema(config, schema)
        self.config, self.max_length, self.sparse_items = config, max_length, False
        self.items = nn.Embedding(num_items, width)
        nn.init.trunc_normal_(self.items.weight, std=config.std, a=-2 * config.std, b=2 * config.std)
        self.positions = nn.Embedding(max_length, width) if config.positions else None
        self.time_gaps = nn.Embedding(config.num_time_buckets, width) if config.time_gaps != "none" else None
        for table in (self.positions, self.time_gaps):
            if table is not None:
                nn.init.trunc_normal_(table.weight, std=math.sqrt(1 / width), a=-1.0, b=1.0)
        self.actions = (
            None
            if config.actions == "none"
            else ActionEmbedding(schema, width, config.actions, config.action_at_targets)
        )
        self.context = ContextTokens(schema.context, width) if schema.context else None
        self.factor = math.sqrt(width) if config.scale else 1.0

    def forward(self, batch: JaggedBatch, earlier: Earlier | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return (total, width) of `dtype` (default: that of the tables), events and candidates.

        `earlier` is what came before where `batch` continues.
        """
        dtype = dtype or self.items.weight.dtype
        if self.items.weight.is_cuda:
            terms = self._terms(batch, earlier)
            if terms is not None and why_not_summed(terms) is None:
                rate = self.config.dropout if self.training else 0.0
                return summed_lookup(terms, dropout=rate, dtype=dtype)
        return self._added(batch, earlier).to(dtype)

    def _terms(self, batch: JaggedBatch, earlier: Earlier | None) -> list[Term] | None:
        """Return the tables whose rows are the input, or None where it is more than their sum."""
        hidden = self.training and self.config.event_dropout > 0
        if batch.target_lengths is not None or self.actions is not None or hidden:
            return None
        terms = [Term(self.items.weight, batch.items.long(), self.factor, self.sparse_items)]
        if self.positions is not None:
            terms.append(Term(self.positions.weight, self._places(batch, earlier)))
        if self.time_gaps is not None and batch.timestamps is not None:
            terms.append(Term(self.time_gaps.weight, self._gap_buckets(batch.timestamps, batch, earlier)))
        return terms

    def _added(self, batch: JaggedBatch, earlier: Earlier | None) -> Tensor:
        lengths = batch.target_lengths
        ahead = None if lengths is None else history_ages(batch.offsets, batch.num_tokens, lengths) < 0
        x_TD = _rows(self.items, batch.items, sparse=self.sparse_items) * self.factor
        if self.training and self.config.event_dropout:
            kept = torch.rand(x_TD.shape[0], 1, device=x_TD.device) >= self.config.event_dropout
            x_TD = x_TD * (kept if ahead is None else kept | ahead[:, None])
        if self.actions is not None:
            x_TD = x_TD + self.actions(batch.actions, batch.strengths, ahead, batch.num_tokens)
        if self.positions is not None:
            placed = _rows(self.positions, self._places(batch, earlier))
            x_TD = x_TD + (placed if ahead is None else placed.masked_fill(ahead[:, None], 0.0))
        if self.time_gaps is not None and batch.timestamps is not None:
            x_TD = x_TD + _rows(self.time_gaps, self._gap_buckets(batch.timestamps, batch, earlier))
        return dropout(x_TD, self.config.dropout, self.training)

    def _places(self, batch: JaggedBatch, earlier: Earlier | None) -> Tensor:
        if self.config.positions != "start":
            ages = history_ages(batch.offsets, batch.num_tokens, batch.target_lengths)
            return ages if batch.target_lengths is None else ages.clamp(min=0)
        places = positions(batch.offsets, batch.num_tokens)
        if earlier is not None:
            places = places + earlier.lengths[segment_ids(batch.offsets, batch.num_tokens)]
        return places.clamp(max=self.max_length - 1)

    def _gap_buckets(self, timestamps: Tensor, batch: JaggedBatch, earlier: Earlier | None) -> Tensor:
        offsets = batch.offsets
        if not timestamps.numel():
            return timestamps
        if self.config.time_gaps == "newest":  # with candidates: until the request, whose time the last token has
            gaps = timestamps[offsets[1:] - 1][segment_ids(offsets, timestamps.numel())] - timestamps
        else:
            segments = segment_ids(offsets, timestamps.numel())
            began = torch.arange(timestamps.numel(), device=offsets.device) == offsets[segments]
            gaps = timestamps.diff(prepend=timestamps[:1]).masked_fill(began, 0)
            if earlier is not None and earlier.timestamps is not None:
                began &= earlier.lengths[segments] > 0
                gaps = torch.where(began, timestamps - earlier.timestamps[segments], gaps)
            if batch.target_lengths is not None:
                gaps = _gap_of_request(gaps, offsets, batch.target_lengths)
        buckets = (gaps.clamp(min=1).to(torch.float32).log() / LOG_BUCKET).long()
        return buckets.clamp(max=self.config.num_time_buckets - 1)


def _check_schema(config: InputEmbedding.Config, schema: Schema) -> None:
    reads = bool(schema.actions or schema.strengths)
    if (config.actions != "none") != reads or config.context != tuple(feature.name for feature in schema.context):
        raise InputError(
            f"model.embedding has actions {config.actions!r} and context {list(config.context)}, but the model is for "
            f"actions {list(schema.actions)}, strengths {[s.name for s in schema.strengths]} and context "
            f"{[feature.name for feature in schema.context]}: build it with the schema of its data"
        )


def _gap_of_request(gaps: Tensor, offsets: Tensor, target_lengths: Tensor) -> Tensor:
    """Return `gaps` (total,) with that of the first candidate at all candidates: they are asked for at once."""
    segment = segment_ids(offsets, gaps.numel())
    first = (offsets[1:] - target_lengths)[segment]
    return gaps[torch.minimum(first, torch.arange(gaps.numel(), device=gaps.device))]


def _rows(table: nn.Embedding, ids: Tensor, *, sparse: bool = False) -> Tensor:
    """Return the rows of `table` at `ids` (n,); on a GPU with a gradient that is summed in one order."""
    if sparse or table.weight.is_cuda:
        return embedding_lookup(table.weight, ids.long(), sparse=sparse)
    # Torch's own gradient has another order of sums than ours, and results on a CPU are promised bit for bit.
    rows: Tensor = table(ids)
    return rows
