"""A loss over the batch plus the same loss over a memory of earlier batches."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.errors import InputError
from longview.metric_learning.checks import check_batch
from longview.metric_learning.distributed import whole
from longview.metric_learning.fixed import FixedSteps
from longview.metric_learning.losses.pairwise import PairwiseLoss
from longview.metric_learning.memory import EmbeddingMemory
from longview.metric_learning.memory_config import MemoryConfig
from longview.metric_learning.reference import Reference
from longview.ops.collectives import gather_rows, gather_with_gradient, ranks, row_counts
from longview.ops.memory_loss import ContrastiveLoss, PairLoss


class LossParts(NamedTuple):
    """The two terms of the newest loss, weighted, detached, of this rank; scalars."""

    batch: Tensor
    memory: Tensor


class CrossBatchLoss(nn.Module):
    """loss(batch, batch) + memory_weight · loss(batch, memory); the memory takes each batch in.

    Args:
        loss: a `PairwiseLoss`, the setting of one, or its name.
        memory: an `EmbeddingMemory` or its setting.
        memory_weight: of the second term, which is there once the memory has rows.
        batch_weight: of the first.
        normalise: L2-normalise embeddings first; the memory stores what `memory.space` says.

    In a job of several ranks with a `replicated` or `sharded` memory, the loss is that of all ranks' batches
    together: the mean of what the ranks return is what one process would return for the whole batch, and so are
    gradients averaged over the ranks, as `DistributedDataParallel` does. Ranks may have different numbers of rows,
    also none; every rank must run backward. With `mean_active`, which divides by a number that no rank knows alone,
    each computes the loss of all rows.

    Example:
        >>> loss = CrossBatchLoss("contrastive", MemoryConfig(capacity=100, width=8))
        >>> z = torch.randn(4, 8, requires_grad=True)
        >>> loss(z, torch.tensor([0, 0, 1, 1]), torch.arange(4)).backward()
        >>> len(loss.memory)
        4
    """

    def __init__(
        self,
        loss: PairwiseLoss | PairLoss | str,
        memory: EmbeddingMemory | MemoryConfig,
        *,
        memory_weight: float = 1.0,
        batch_weight: float = 1.0,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.loss = loss if isinstance(loss, PairwiseLoss) else PairwiseLoss(loss)
        self.memory = memory if isinstance(memory, EmbeddingMemory) else memory.build()
        self.memory_weight, self.batch_weight, self.normalise = memory_weight, batch_weight, normalise
        self.parts: LossParts | None = None
        self.fixed: FixedSteps | None = None
        if min(memory_weight, batch_weight) < 0:
            raise InputError(f"weights must not be negative, got {memory_weight} and {batch_weight}")
        before = self.memory.config.space == "before-l2"
        if before and not (normalise and self.memory.config.normalises):
            raise InputError(
                "a memory of embeddings before L2 needs normalise=True here and renormalise in the memory: "
                "batch and memory would not be comparable"
            )
        if self.shared and self.loss.reduction == "none":
            raise InputError("reduction='none' over several ranks: expected 'mean_per_anchor', 'mean_active' or 'sum'")

    @property
    def shared(self) -> bool:
        """Whether the batches of several ranks make one loss."""
        return self.memory.config.distributed != "local" and ranks()[0] > 1

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        sample_ids: Tensor | None = None,
        *,
        keys: Tensor | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a scalar.

        Args:
            embeddings: (b, d) floating point.
            labels: (b,) int64, not negative.
            sample_ids: (b,) int64: who each row is in every epoch, so that no row meets its own older version.
            keys: (b, d) stored instead of `embeddings`, from a `MomentumEncoder`.
            enqueue_mask: (b,) bool, the rows that are stored.

        Raises:
            InputError: as `EmbeddingMemory.forward`; the memory is then as it was.
        """
        check_batch(embeddings, labels, sample_ids, width=self.memory.config.width, least=0 if self.shared else 1)
        anchors = functional.normalize(embeddings, dim=1) if self.normalise else embeddings
        stored = embeddings if keys is None else keys
        if self.normalise and self.memory.config.space == "after-l2":
            stored = anchors if keys is None else functional.normalize(keys, dim=1)
        if stored.shape != embeddings.shape:
            raise InputError(f"keys must be {tuple(embeddings.shape)}, as the embeddings, got {tuple(stored.shape)}")
        if self.fixed is not None:
            return self._sum(*self._fixed_terms(anchors, stored, labels, sample_ids))
        reference = self.memory(stored, labels, sample_ids, enqueue_mask=enqueue_mask)
        if self.shared:
            batch, memory = self._shared_terms(anchors, labels, sample_ids, reference)
        else:
            batch = self.loss(anchors, labels, sample_ids=sample_ids)
            memory = self.loss(anchors, labels, reference) if len(reference) else batch.new_zeros(())
        return self._sum(batch, memory)

    def fix(self, batch: int) -> FixedSteps:
        """Make every further step the same operations, for capture; see `FixedSteps`. `release` ends it.

        Raises:
            InputError: a memory whose steps differ, or that has not seen a batch.
        """
        self.fixed = FixedSteps(self.memory, batch)
        return self.fixed

    def release(self) -> None:
        """Go back to steps that look at their batch; the memory's counters are brought up to date."""
        if self.fixed is not None:
            self.fixed.settle()
        self.fixed = None

    def _sum(self, batch: Tensor, memory: Tensor) -> Tensor:
        batch = batch if self.batch_weight == 1 else self.batch_weight * batch
        memory = memory if self.memory_weight == 1 else self.memory_weight * memory
        self.parts = LossParts(batch.detach(), memory.detach())
        return batch + memory

    def _fixed_terms(
        self, anchors: Tensor, stored: Tensor, labels: Tensor, sample_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return both terms without a look at the device: densely, or by kernels where the memory has them."""
        if self.fixed is None or sample_ids is None:
            raise InputError("captured steps need sample_ids: the memory does not number rows there")
        dense = PairwiseLoss(self.loss.loss, reduction=self.loss.reduction, backend="reference")
        reference = self.fixed(stored, labels, sample_ids)
        halves = reference.rows.is_cuda and reference.rows.dtype in (torch.bfloat16, torch.float16)
        against = PairwiseLoss(self.loss.loss, reduction=self.loss.reduction, backend="triton") if halves else dense
        return dense(anchors, labels, sample_ids=sample_ids), against(anchors, labels, reference)

    def _shared_terms(
        self, anchors: Tensor, labels: Tensor, sample_ids: Tensor | None, reference: Reference
    ) -> tuple[Tensor, Tensor]:
        """Return this rank's share of both terms, times the number of ranks."""
        world, rank = ranks()
        sizes = row_counts(len(labels), labels.device)
        first = sum(sizes[:rank])
        everyone, all_labels = gather_with_gradient(anchors), gather_rows(labels, sizes)
        all_ids = None if sample_ids is None else gather_rows(sample_ids, sizes)
        if self.loss.reduction == "mean_active":
            return self._whole_terms(everyone, all_labels, all_ids, reference, sizes)
        share = world / sum(sizes) if self.loss.reduction == "mean_per_anchor" else float(world)
        idle = everyone.sum() * 0  # a rank without rows takes part in the backward pass of the gathering all the same
        if self.memory.config.distributed == "sharded" and isinstance(self.loss.loss, ContrastiveLoss):
            # A sum over rows of the memory: every rank gives that over its own rows, for the anchors of all.
            ids = gather_rows(reference.anchor_ids, sizes)
            memory = self._summed(everyone, all_labels, replace(reference, anchor_ids=ids))
        else:
            if self.memory.config.distributed == "sharded":
                reference = whole(reference)
            memory = self._summed(anchors, labels, reference) if len(labels) else idle
        batch = idle
        if len(labels):
            places = first + torch.arange(len(labels), device=labels.device)
            batch = self._sum_loss()(
                anchors,
                labels,
                everyone,
                all_labels,
                sample_ids=sample_ids,
                reference_ids=all_ids,
                own_positions=places,
            )
        return share * batch, share * memory

    def _whole_terms(
        self, everyone: Tensor, labels: Tensor, ids: Tensor | None, reference: Reference, sizes: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Return both terms of the rows of all ranks, the same on each of them."""
        reference = replace(reference, anchor_ids=gather_rows(reference.anchor_ids, sizes))
        if self.memory.config.distributed == "sharded":
            reference = whole(reference)
        batch = self.loss(everyone, labels, sample_ids=ids)
        return batch, self.loss(everyone, labels, reference) if len(reference) else batch.new_zeros(())

    def _sum_loss(self) -> PairwiseLoss:
        return PairwiseLoss(self.loss.loss, reduction="sum", backend=self.loss.backend)

    def _summed(self, anchors: Tensor, labels: Tensor, reference: Reference) -> Tensor:
        value: Tensor = self._sum_loss()(anchors, labels, reference)
        return value
