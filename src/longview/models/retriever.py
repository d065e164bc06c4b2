"""The retrieval model: input embedding, a stack of layers, and an inner product with the item table."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from longview.config import Config
from longview.data.batches import JaggedBatch
from longview.models.embeddings import InputEmbedding
from longview.models.hstu import AttentionConfig, HSTULayer, HSTUStack, LayerConfig, Layout
from longview.models.sasrec import SASRecStack


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

    @model_validator(mode="after")
    def _heads_divide_width(self) -> RetrieverConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    def build(self, num_items: int) -> Retriever:
        return Retriever(self, num_items)


class Retriever(nn.Module):
    """Scores item i after a history by the inner product of the query of its newest event and item i's vector."""

    def __init__(self, config: RetrieverConfig, num_items: int) -> None:
        super().__init__()
        self.config, self.num_items, self.max_length = config, num_items, config.max_length
        self.embedding = InputEmbedding(config.embedding, num_items, config.width, config.max_length)
        self.stack = _stack(config)
        self.final_norm = nn.LayerNorm(config.width, eps=1e-6) if config.final_norm else nn.Identity()

    def forward(self, batch: JaggedBatch) -> Tensor:
        """Return (total, width) queries: row i scores what follows event i."""
        hidden = self.stack(self._stream(batch), _layout(batch))
        return self._normalise(self.final_norm(hidden))

    @torch.no_grad()
    def user_vectors(self, batch: JaggedBatch) -> Tensor:
        """Return (batch, width) float32, the query of the newest event of each (non-empty) history."""
        hidden = self.stack.newest(self._stream(batch), _layout(batch))
        return self._normalise(self.final_norm(hidden)).float()

    def item_vectors(self) -> Tensor:
        """Return (num_items, width)."""
        return self._normalise(self.embedding.items.weight)

    def _stream(self, batch: JaggedBatch) -> Tensor:
        x_TD: Tensor = self.embedding(batch)
        kind = x_TD.device.type
        if self.config.residual == "product" and torch.is_autocast_enabled(kind):
            return x_TD.to(torch.get_autocast_dtype(kind))
        return x_TD

    def _normalise(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1, eps=1e-6) if self.config.normalise else vectors


def _layout(batch: JaggedBatch) -> Layout:
    return Layout(batch.offsets, batch.max_length, batch.timestamps)


def _stack(config: RetrieverConfig) -> HSTUStack | SASRecStack:
    if config.kind == "sasrec":
        return SASRecStack(config.width, config.heads, config.layers, config.dropout)
    return HSTUStack(
        [
            HSTULayer(config.width, config.heads, config.max_length, config.dropout, config.layer, config.attention)
            for _ in range(config.layers)
        ]
    )
