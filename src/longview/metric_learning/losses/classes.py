"""Losses against one learned vector a class: baselines that need no pairs, and no memory."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.errors import InputError
from longview.metric_learning.checks import check_batch
from longview.ops.softmax_loss import full_softmax_loss


class ClassWeightLoss(nn.Module, ABC):
    """A vector a class, `weight` (num_classes, width), learned with the encoder; labels are 0 … num_classes - 1.

    Its parameters must be given to an optimiser; a larger rate than the encoder's is usual (×100 in ProxyAnchor).
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        if num_classes < 2 or width < 1:
            raise InputError(f"{num_classes} classes of width {width}: at least 2 classes of width 1 expected")
        self.weight = nn.Parameter(nn.init.kaiming_normal_(torch.empty(num_classes, width), mode="fan_out"))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss of `embeddings` (b, d) of classes `labels` (b,) int64, a scalar.

        Raises:
            InputError: shapes that do not fit, labels outside the classes, or a reference: rows of a memory would
                give the encoder no gradient here.
        """
        if reference is not None or reference_labels is not None:
            raise InputError(f"{type(self).__name__} compares with learned class vectors: it takes no reference")
        check_batch(embeddings, labels, width=self.weight.shape[1])
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high >= len(self.weight):
            raise InputError(f"labels run from {low} to {high}, and there are {len(self.weight)} classes from 0 on")
        return self._loss(functional.normalize(embeddings, dim=1), functional.normalize(self.weight, dim=1), labels)

    @abstractmethod
    def _loss(self, z_BD: Tensor, w_CD: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of L2-normalised rows z (b, d) and class vectors w (C, d), a scalar."""


class NormalisedSoftmaxLoss(ClassWeightLoss):
    """Cross-entropy of cosines with the class vectors over a temperature. Source: Zhai and Wu, arXiv 1811.12649."""

    def __init__(self, num_classes: int, width: int, *, temperature: float = 0.05) -> None:
        super().__init__(num_classes, width)
        self.temperature = temperature

    def _loss(self, z_BD: Tensor, w_CD: Tensor, labels: Tensor) -> Tensor:
        return full_softmax_loss(z_BD, w_CD, labels, temperature=self.temperature)


class ArcFaceLoss(ClassWeightLoss):
    """Cross-entropy of scaled cosines, the own class's angle widened by `margin` radians.

    Where angle + margin passes π, the cosine goes on linearly, so that it stays monotone.
    Source: Deng et al., arXiv 1801.07698.
    """

    def __init__(self, num_classes: int, width: int, *, margin: float = 0.5, scale: float = 64.0) -> None:
        super().__init__(num_classes, width)
        if not (0 <= margin < math.pi / 2 and scale > 0):
            raise InputError(f"margin={margin}, scale={scale}: a margin in [0, π/2) and a positive scale expected")
        self.margin, self.scale = margin, scale

    def _loss(self, z_BD: Tensor, w_CD: Tensor, labels: Tensor) -> Tensor:
        cosine_BC = z_BD @ w_CD.mT
        own = cosine_BC.gather(1, labels[:, None])
        sine = (1 - own.square()).clamp_min(1e-12).sqrt()
        widened = own * math.cos(self.margin) - sine * math.sin(self.margin)
        widened = torch.where(own > -math.cos(self.margin), widened, own - self.margin * math.sin(self.margin))
        return functional.cross_entropy(self.scale * cosine_BC.scatter(1, labels[:, None], widened), labels)


class ProxyAnchorLoss(ClassWeightLoss):
    """Every class vector is an anchor: pulled to its rows of the batch and pushed from all others.

    mean over classes in the batch of log(1 + Σ exp(-α (s - δ))) over their rows, plus mean over all classes of
    log(1 + Σ exp(α (s + δ))) over the rows of others. Source: Kim et al., arXiv 2003.13911.
    """

    def __init__(self, num_classes: int, width: int, *, margin: float = 0.1, alpha: float = 32.0) -> None:
        super().__init__(num_classes, width)
        self.margin, self.alpha = margin, alpha

    def _loss(self, z_BD: Tensor, w_CD: Tensor, labels: Tensor) -> Tensor:
        cosine_BC = z_BD @ w_CD.mT
        own_BC = functional.one_hot(labels, len(w_CD)).bool()
        pull = (-self.alpha * (cosine_BC - self.margin)).masked_fill(~own_BC, -torch.inf)
        push = (self.alpha * (cosine_BC + self.margin)).masked_fill(own_BC, -torch.inf)
        present = own_BC.any(0)
        pulled = _log_one_plus(pull).where(present, 0.0).sum() / present.sum()
        return pulled + _log_one_plus(push).mean()


def _log_one_plus(logits_BC: Tensor) -> Tensor:
    """Return log(1 + Σ exp) over the batch, (C,); 0 for a class without a row."""
    zero = logits_BC.new_zeros(1, logits_BC.shape[1])
    return torch.cat([logits_BC, zero]).logsumexp(0)
