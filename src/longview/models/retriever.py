"""The retrieval model: input embedding, a stack of layers, and an inner product with the item table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from longview.config import Config
from longview.data.batches import JaggedBatch
from longview.data.schema import Schema
from longview.errors import InputError
from longview.models.context import layout_in_front, put_in_front, without_context
from longview.models.embeddings import Earlier, InputEmbedding
from longview.models.hstu import HSTUStack
from longview.models.layer_config import AttentionConfig, LayerConfig
from longview.models.layout import Hidden, Layout
from longview.models.sasrec import SASRecStack
from longview.models.streams import StreamConfig, StreamedStack
from longview.models.topology import Body, TruncatedStack, TruncationConfig


class RetrieverConfig(Config):
    """Everything that fixes a retrieval model but the size of the catalogue."""

    kind: Literal["hstu", "sasrec"] = "hstu"
    width: int = Field(default=64, ge=1)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=2, ge=1)
    max_length: int = Field(default=200, ge=1, description="newest events of a history that are read")
    dropout: float = Field(default=0.2, ge=0, lt=1)
    normalise: bool = Field(default=False, description="L2-normalise queries and items (set loss.temperature)")
    final_norm: bool = Field(default=False, description="layer norm after the last layer")
    residual: Literal["float32", "product"] = Field(
        default="float32", description="dtype of the stream between layers: float32, or that of the products"
    )
    embedding: InputEmbedding.Config = InputEmbedding.Config()
    layer: LayerConfig = LayerConfig()
    attention: AttentionConfig = AttentionConfig()
    truncation: TruncationConfig | None = Field(default=None, description="a second stage over the newest events")
    streams: dict[str, StreamConfig] = Field(default={}, description="a stack for each stream of behaviour, by name")
    fusion: Literal["concat", "sum"] = Field(default="concat", description="how streams become one vector")

    @field_validator("streams")
    @classmethod
    def _names_are_plain(cls, streams: dict[str, StreamConfig]) -> dict[str, StreamConfig]:
        for name in streams:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise ValueError(f"a stream cannot be named {name!r}: use letters, digits and _, as in 'engagement'")
        return streams

    @model_validator(mode="after")
    def _parts_fit(self) -> RetrieverConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.kind == "sasrec" and (self.truncation is not None or self.streams):
            raise ValueError("truncation and streams are made of HSTU layers: set kind hstu, or leave them out")
        if self.fusion == "sum" and not self.streams:
            raise ValueError("fusion sum joins streams, and there are none: set streams, or leave fusion out")
        if self.kind == "sasrec" and self.layer.precision != "run":
            raise ValueError(
                f"layer.precision {self.layer.precision} is of HSTU layers: set kind hstu, or leave it out"
            )
        return self

    def build(self, num_items: int, actions: Sequence[str] = (), schema: Schema | None = None) -> Retriever:
        """Return the model for a catalogue.

        `actions` are the data's action names, bit 0 first (for `streams`); `schema` says what `embedding.actions` and
        `embedding.context` read.
        """
        return Retriever(self, num_items, actions, schema)


@dataclass(frozen=True)
class Queries:
    """Query vectors (rows, width), and which event of the batch each follows: (rows,) int64, or None for all."""

    vectors: Tensor
    rows: Tensor | None = None

    def of(self, values: Tensor) -> Tensor:
        """Return the entries of `values` (total, ...), one an event, that belong to these queries."""
        return values if self.rows is None else values[self.rows]


class Retriever(nn.Module):
    """Scores item i after a history by the inner product of the query of its newest event and item i's vector."""

    def __init__(
        self, config: RetrieverConfig, num_items: int, actions: Sequence[str] = (), schema: Schema | None = None
    ) -> None:
        super().__init__()
        self.config, self.num_items, self.max_length = config, num_items, config.max_length
        self.schema = schema or Schema()
        self.embedding = InputEmbedding(config.embedding, num_items, config.width, config.max_length, schema)
        self.stack = _stack(config, actions)
        self.final_norm = nn.LayerNorm(config.width, eps=1e-6) if config.final_norm else nn.Identity()

    def forward(self, batch: JaggedBatch) -> Tensor:
        """Return (total, width) queries: row i scores what follows event i.

        Raises:
            InputError: events were cut off on the way, so that not every one has a query: use `queries`.
        """
        found = self.queries(batch)
        if found.rows is not None:
            raise InputError("events are cut off in this model (truncation, or a stream's max_length): use queries()")
        return found.vectors

    def queries(self, batch: JaggedBatch) -> Queries:
        """Return the queries of the events that have one: all, or with a truncation those near the newest."""
        return self.queries_of(self.hidden(batch))

    def queries_of(self, hidden: Hidden) -> Queries:
        """Return the queries of what the stack gave; candidates have one too, which means nothing."""
        values, rows = without_context(hidden)
        return Queries(self.finish(values), rows)

    def hidden(self, batch: JaggedBatch) -> Hidden:
        """Return what the stack gives for `batch`."""
        return self.stack.hidden(*self.sequences(batch))

    @torch.no_grad()
    def user_vectors(self, batch: JaggedBatch) -> Tensor:
        """Return (batch, width) float32, the query of the newest event of each (non-empty) history."""
        return self.finish(self.stack.newest(*self.sequences(batch))).float()

    def item_vectors(self) -> Tensor:
        """Return (num_items, width)."""
        return self._normalise(self.embedding.items.weight)

    def finish(self, hidden: Tensor) -> Tensor:
        """Return queries of rows that the stack gave."""
        return self._normalise(self.final_norm(hidden))

    def sequences(self, batch: JaggedBatch) -> tuple[Tensor, Layout]:
        """Return the tokens `[context | history | targets]` of `batch` and where they belong."""
        x_TD, layout = self.stream(batch), self._layout(batch)
        if self.embedding.context is None:
            return x_TD, layout
        return put_in_front(self.embedding.context(batch.context, batch.num_sequences), x_TD, layout)

    def stream(self, batch: JaggedBatch, earlier: Earlier | None = None) -> Tensor:
        """Return (total, width), the embedded tokens of `batch` in the dtype that runs between layers.

        `earlier` is what came before where `batch` continues histories.
        """
        kind, dtype = batch.items.device.type, self.embedding.items.weight.dtype
        if self.config.residual == "product" and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        x_TD: Tensor = self.embedding(batch, earlier, dtype)
        return x_TD

    def _layout(self, batch: JaggedBatch) -> Layout:
        selects = isinstance(self.stack, TruncatedStack | StreamedStack)  # else no sizes are asked for
        return Layout(
            batch.offsets,
            batch.max_length,
            batch.timestamps,
            target_lengths=batch.target_lengths,
            actions=batch.actions,
            host_offsets=batch.host_offsets if selects and batch.sizes is None else None,
            num_targets=0 if batch.target_lengths is None else None if batch.labels is None else len(batch.labels),
            sizes=batch.sizes,
        )

    def sizes(self, batch: JaggedBatch) -> dict[str, int]:
        """Return how many rows each selection of `hidden` is to keep of a padded batch, which is on the CPU.

        With these as its `sizes` the batch makes no shape depend on what is in it.
        """
        if not isinstance(self.stack, TruncatedStack | StreamedStack):
            return {}
        layout, context = self._layout(batch), self.embedding.context
        if context is not None:
            _, layout = layout_in_front(batch.num_sequences * context.num_features, batch.num_tokens, layout)
        return self.stack.sizes(layout)

    def _normalise(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1, eps=1e-6) if self.config.normalise else vectors


def stages(config: RetrieverConfig) -> list[tuple[AttentionConfig, int]]:
    """Return the attention of every stack and stage, and how many events it reads at most."""
    found = [] if config.streams else [(config.attention, config.max_length)]
    truncations = [] if config.streams else [config.truncation]
    for stream in config.streams.values():
        found.append((stream.attention or config.attention, stream.max_length or config.max_length))
        truncations.append(stream.truncation or config.truncation)
    return found + [(second.attention, second.length) for second in truncations if second is not None]


def _stack(config: RetrieverConfig, actions: Sequence[str]) -> HSTUStack | TruncatedStack | StreamedStack | SASRecStack:
    if config.kind == "sasrec":
        return SASRecStack(config.width, config.heads, config.layers, config.dropout)
    body = Body(config.width, config.heads, config.dropout, config.layer)
    if not config.streams:
        return body.stack(config.layers, config.max_length, config.attention, config.truncation)
    return StreamedStack(
        {
            name: body.stack(
                stream.layers or config.layers,
                stream.max_length or config.max_length,
                stream.attention or config.attention,
                stream.truncation or config.truncation,
            )
            for name, stream in config.streams.items()
        },
        rules={name: stream.rule(name, actions) for name, stream in config.streams.items()},
        limits={name: stream.max_length for name, stream in config.streams.items()},
        fusion=config.fusion,
        width=config.width,
    )
