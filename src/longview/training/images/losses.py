"""What a run on images trains on: pairs in a batch, pairs with a memory, or one learned vector a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.metric_learning import (
    ArcFaceLoss,
    ClassWeightLoss,
    CrossBatchLoss,
    NormalisedSoftmaxLoss,
    ProxyAnchorLoss,
)
from longview.ops.collectives import gather_rows, gather_with_gradient, ranks, row_counts
from longview.training.images.config import CLASS_LOSSES, ImageRunConfig

KINDS: dict[str, type[ClassWeightLoss]] = {
    "normalised-softmax": NormalisedSoftmaxLoss,
    "arcface": ArcFaceLoss,
    "proxy-anchor": ProxyAnchorLoss,
}


def of_all_ranks(embeddings: Tensor, labels: Tensor, sample_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the batch of all processes, differentiably: each computes its loss, and the mean of those is the loss."""
    sizes = row_counts(len(labels), labels.device)
    return gather_with_gradient(embeddings), gather_rows(labels, sizes), gather_rows(sample_ids, sizes)


class BatchLoss(nn.Module):
    """The loss of a batch alone, L2-normalised: what a run without a memory trains on."""

    def __init__(self, config: ImageRunConfig) -> None:
        super().__init__()
        self.loss, self.weight = config.loss.build(), config.loss.batch_weight

    def forward(self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor) -> Tensor:
        """Return the loss of (b, d) embeddings, a scalar."""
        embeddings, labels, sample_ids = of_all_ranks(embeddings, labels, sample_ids)
        value: Tensor = self.loss(functional.normalize(embeddings, dim=1), labels, sample_ids=sample_ids)
        return self.weight * value


class ClassLoss(nn.Module):
    """A loss against one learned vector a class; `classes` (C,) int64 are the class numbers that train, in order."""

    classes: Tensor

    def __init__(self, config: ImageRunConfig, classes: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("classes", classes, persistent=False)
        self.loss = KINDS[config.loss.kind](len(classes), width, **config.loss.class_settings())
        self.weight = config.loss.batch_weight

    def forward(self, embeddings: Tensor, labels: Tensor, sample_ids: Tensor) -> Tensor:
        """Return the loss of (b, d) embeddings, a scalar."""
        embeddings, labels, _ = of_all_ranks(embeddings, labels, sample_ids)
        value: Tensor = self.loss(embeddings, torch.searchsorted(self.classes, labels))
        return self.weight * value


def make_loss(config: ImageRunConfig, width: int, classes: Tensor) -> BatchLoss | ClassLoss | CrossBatchLoss:
    """Return the loss of a run whose encoder gives `width` dimensions, on `classes` (C,) int64, sorted."""
    if config.loss.kind in CLASS_LOSSES:
        return ClassLoss(config, classes, width)
    if config.memory is None:
        return BatchLoss(config)
    # On one process a memory asks nobody, so that its steps can be captured.
    memory = config.memory.of_width(width)
    mode = "replicated" if ranks()[0] > 1 else "local"
    return CrossBatchLoss(
        config.loss.build(),
        memory.model_copy(update={"distributed": mode}),
        memory_weight=config.loss.memory_weight,
        batch_weight=config.loss.batch_weight,
    )
