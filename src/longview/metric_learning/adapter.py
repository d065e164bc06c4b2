"""Our memory around a loss of pytorch-metric-learning, in one line; that package is not needed here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.errors import InputError
from longview.metric_learning.checks import check_batch
from longview.metric_learning.memory import EmbeddingMemory
from longview.metric_learning.memory_config import MemoryConfig

Indices = tuple[Tensor, ...]


class RememberingLoss(nn.Module):
    """A loss called as `loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)`, over the batch and a memory.

    loss(batch) + memory_weight · loss(batch against memory). The memory is an `EmbeddingMemory`, so its rows follow
    the encoder, it is saved with the model, and samples are told apart by id. The loss gets the memory as one tensor
    and makes its own lists of pairs: use `CrossBatchLoss` where that is too much.

    Args:
        loss: for example `pytorch_metric_learning.losses.ContrastiveLoss()`.
        memory: an `EmbeddingMemory` or its setting.
        miner: called as `miner(embeddings, labels, ref_emb, ref_labels)`; which pairs of batch and memory are used.
        memory_weight: of the second term.
        normalise: store L2-normalised embeddings; such a loss normalises what it gets, by default.

    Example:
        >>> from longview.metric_learning import MemoryConfig
        >>> def loss(z, labels, indices_tuple=None, ref_emb=None, ref_labels=None):
        ...     return (z @ (z if ref_emb is None else ref_emb).T).mean()
        >>> remembering = RememberingLoss(loss, MemoryConfig(capacity=100, width=2))
        >>> remembering(torch.eye(2, requires_grad=True), torch.tensor([0, 1])).item()
        0.5
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        memory: EmbeddingMemory | MemoryConfig,
        *,
        miner: Callable[..., Indices] | None = None,
        memory_weight: float = 1.0,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner
        self.memory = memory if isinstance(memory, EmbeddingMemory) else memory.build()
        self.memory_weight = memory_weight
        self.normalise = normalise and self.memory.config.space == "after-l2"
        if self.memory.config.distributed != "local":
            raise InputError("a loss of another package cannot share a batch over ranks: distributed must be 'local'")

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Indices | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        sample_ids: Tensor | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a scalar.

        `indices_tuple` is for pairs within the batch. With `sample_ids` (b,) int64 no row meets its own older version.

        Raises:
            InputError: as `EmbeddingMemory.forward`; or `ref_emb`, because the reference is the memory.
        """
        if ref_emb is not None or ref_labels is not None:
            raise InputError("the reference of this loss is its memory: call the loss itself to give another")
        check_batch(embeddings, labels, sample_ids, width=self.memory.config.width)
        stored = functional.normalize(embeddings, dim=1) if self.normalise else embeddings
        reference = self.memory(stored, labels, sample_ids, enqueue_mask=enqueue_mask)
        batch = self.loss(embeddings, labels, indices_tuple)
        if not len(reference):
            return batch
        rows, classes = reference.embeddings(embeddings.dtype), reference.labels
        ids = reference.sample_ids
        if reference.mask is not None:
            rows, classes, ids = rows[reference.mask], classes[reference.mask], ids[reference.mask]
        pairs = self._pairs(embeddings, labels, rows, classes)
        if sample_ids is not None or self.memory.config.order == "enqueue-first":
            if pairs is None:
                same = labels[:, None] == classes[None, :]
                pairs = (*torch.where(same), *torch.where(~same))
            pairs = without_own(pairs, reference.anchor_ids, ids)
        return batch + self.memory_weight * self.loss(embeddings, labels, pairs, rows, classes)

    def _pairs(self, embeddings: Tensor, labels: Tensor, rows: Tensor, classes: Tensor) -> Indices | None:
        return None if self.miner is None else self.miner(embeddings, labels, rows, classes)


def without_own(indices: Indices, anchor_ids: Tensor, row_ids: Tensor) -> Indices:
    """Return pairs (anchor, positive, anchor, negative) or triplets without those of a sample with itself.

    Raises:
        InputError: neither three nor four index tensors.
    """
    if len(indices) == 4:
        a, p, b, n = indices
        positive, negative = anchor_ids[a] != row_ids[p], anchor_ids[b] != row_ids[n]
        return a[positive], p[positive], b[negative], n[negative]
    if len(indices) == 3:
        a, p, n = indices
        kept = (anchor_ids[a] != row_ids[p]) & (anchor_ids[a] != row_ids[n])
        return a[kept], p[kept], n[kept]
    raise InputError(f"a miner returns four index tensors (pairs) or three (triplets), got {len(indices)}")
