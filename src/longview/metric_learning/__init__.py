"""Metric learning: a memory of embeddings that follows its encoder, losses over it, and what tells whether it helps.

Read `drift.py` and `kalman.py` for the rules, `memory.py` for the memory, `cross_batch.py` for its use in a loss.
"""

from longview.metric_learning.adapter import RememberingLoss
from longview.metric_learning.cross_batch import CrossBatchLoss, LossParts
from longview.metric_learning.diagnostics import DriftDiagnostics, MemoryWarning
from longview.metric_learning.drift import DriftPolicy, DriftState, MomentMatching, MovingAverage, NoCorrection
from longview.metric_learning.kalman import AdaptiveMomentMatching, Drift
from longview.metric_learning.losses import (
    ArcFaceLoss,
    ClassWeightLoss,
    NormalisedSoftmaxLoss,
    PairwiseLoss,
    ProxyAnchorLoss,
)
from longview.metric_learning.memory import EmbeddingMemory
from longview.metric_learning.memory_config import MemoryConfig
from longview.metric_learning.moments import BatchMoments, batch_moments
from longview.metric_learning.momentum import MomentumEncoder
from longview.metric_learning.reference import Reference
from longview.ops.memory_loss import (
    CircleLoss,
    ContrastiveLoss,
    InfoNCELoss,
    MultiSimilarityLoss,
    SupervisedContrastiveLoss,
    TripletLoss,
)

__all__ = [
    "AdaptiveMomentMatching",
    "ArcFaceLoss",
    "BatchMoments",
    "CircleLoss",
    "ClassWeightLoss",
    "ContrastiveLoss",
    "CrossBatchLoss",
    "Drift",
    "DriftDiagnostics",
    "DriftPolicy",
    "DriftState",
    "EmbeddingMemory",
    "InfoNCELoss",
    "LossParts",
    "MemoryConfig",
    "MemoryWarning",
    "MomentMatching",
    "MomentumEncoder",
    "MovingAverage",
    "MultiSimilarityLoss",
    "NoCorrection",
    "NormalisedSoftmaxLoss",
    "PairwiseLoss",
    "ProxyAnchorLoss",
    "Reference",
    "RememberingLoss",
    "SupervisedContrastiveLoss",
    "TripletLoss",
    "batch_moments",
]
