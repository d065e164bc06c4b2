"""From features to the embedding: pooling, projection, length."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from longview.config import Config
from longview.errors import InputError
from longview.models.encoders.features import Features

SMALLEST = 1e-6


class HeadConfig(Config):
    """How an image's features become one vector."""

    pooling: Literal["avg", "max", "gem", "cls"] = Field(
        default="avg", description="over places: mean, maximum, generalised mean; cls = the class token"
    )
    gem_power: float = Field(default=3.0, gt=0, description="first power of gem, which learns it; 1 = avg, ∞ = max")
    dimension: int | None = Field(default=64, ge=1, description="of the embedding; null = features as they are")
    normalise: bool = Field(default=True, description="L2-normalise; false where the loss does")

    def build(self, width: int, has_summary: bool) -> EmbeddingHead:
        return EmbeddingHead(self, width, has_summary)


class EmbeddingHead(nn.Module):
    """Features of width C to embeddings (B, `dimension`).

    GeM is the mean of x^p to the power 1 / p, over values of at least 1e-6 as it is defined on what a ReLU gives:
    features below zero count as none (Radenović et al., arXiv 1711.02512).

    Raises:
        InputError: `cls` pooling of a backbone without a class token.
    """

    def __init__(self, config: HeadConfig, width: int, has_summary: bool) -> None:
        super().__init__()
        if config.pooling == "cls" and not has_summary:
            raise InputError("head.pooling cls: this backbone has no class token; choose avg, max or gem")
        self.config = config
        self.dimension = width if config.dimension is None else config.dimension
        if config.pooling == "gem":
            self.power = nn.Parameter(torch.tensor(float(config.gem_power)))
        self.project = nn.Identity() if config.dimension is None else nn.Linear(width, config.dimension)

    def forward(self, features: Features) -> Tensor:
        """Return (B, dimension), of length 1 if the config says so."""
        embeddings_BD: Tensor = self.project(self.pool(features))
        return F.normalize(embeddings_BD, dim=1) if self.config.normalise else embeddings_BD

    def pool(self, features: Features) -> Tensor:
        """Return (B, C)."""
        patches_BNC = features.patches
        match self.config.pooling:
            case "avg":
                return patches_BNC.mean(1)
            case "max":
                return patches_BNC.amax(1)
            case "gem":
                return patches_BNC.clamp(min=SMALLEST).pow(self.power).mean(1).pow(1 / self.power)
            case "cls":
                assert features.summary is not None
                return features.summary
