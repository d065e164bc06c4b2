"""Losses with one `forward(embeddings, labels, reference=None, reference_labels=None)`."""

from longview.metric_learning.losses.classes import (
    ArcFaceLoss,
    ClassWeightLoss,
    NormalisedSoftmaxLoss,
    ProxyAnchorLoss,
)
from longview.metric_learning.losses.pairwise import PairwiseLoss, named_loss

__all__ = [
    "ArcFaceLoss",
    "ClassWeightLoss",
    "NormalisedSoftmaxLoss",
    "PairwiseLoss",
    "ProxyAnchorLoss",
    "named_loss",
]
