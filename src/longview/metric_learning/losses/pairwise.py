"""Losses over pairs of a batch with itself, or with a reference such as a memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longview.errors import InputError, suggestion
from longview.metric_learning.checks import check_batch, check_labels
from longview.metric_learning.reference import Reference
from longview.ops.memory_loss import PAIR_LOSSES, PairLoss, Reduction, memory_loss
from longview.ops.memory_loss.path import Backend


class PairwiseLoss(nn.Module):
    """One loss of `ops.memory_loss` as a module; a batch is compared with itself, or with a reference.

    Args:
        loss: a setting such as `ContrastiveLoss(negative_margin=0.4)`, or the name of one with its defaults.
        reduction: `mean_per_anchor`, `sum`, `mean_active` or `none`.
        backend: of the operation; None chooses.

    Example:
        >>> z = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), dim=1)
        >>> round(PairwiseLoss("contrastive")(z, torch.tensor([3, 3])).item(), 4)  # 1 - 0.6 for both anchors
        0.4
    """

    def __init__(
        self, loss: PairLoss | str, *, reduction: Reduction = "mean_per_anchor", backend: Backend | None = None
    ) -> None:
        super().__init__()
        self.loss, self.reduction, self.backend = named_loss(loss), reduction, backend

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | Reference | None = None,
        reference_labels: Tensor | None = None,
        *,
        sample_ids: Tensor | None = None,
        reference_ids: Tensor | None = None,
        own_positions: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of every embedding against every row of the reference, reduced.

        Args:
            embeddings: (b, d), L2-normalised where the loss means cosines.
            labels: (b,) int64.
            reference: what a memory returned, with everything that belongs to it; or (m, d) with `reference_labels`
                (m,). None: the batch itself, each row without itself, and both sides get gradients.
            sample_ids, reference_ids: (b,) and (m,) int64; a pair of equal ids is left out.
            own_positions: (b,) int64, the rows of the reference that are the anchors; negative for none.

        Raises:
            InputError: shapes or dtypes that do not fit.
        """
        check_batch(embeddings, labels, sample_ids, width=None)
        if isinstance(reference, Reference):
            return self._against(reference, embeddings, labels)
        if reference is None:
            reference, reference_labels, reference_ids = embeddings, labels, sample_ids
            if sample_ids is None:  # equal ids leave out what equal positions would
                own_positions = torch.arange(len(labels), device=labels.device)
        if reference_labels is None:
            raise InputError("a reference needs reference_labels, one a row")
        check_labels(reference_labels, len(reference))
        ids = (None, None) if reference_ids is None else (sample_ids, reference_ids)
        return memory_loss(
            embeddings,
            labels,
            reference,
            reference_labels,
            loss=self.loss,
            own_ids=ids[0],
            reference_ids=ids[1],
            own_positions=own_positions,
            reduction=self.reduction,
            backend=self.backend,
        )

    def _against(self, memory: Reference, embeddings: Tensor, labels: Tensor) -> Tensor:
        if len(memory.anchor_ids) != len(labels):
            raise InputError(
                f"the memory was read for a batch of {len(memory.anchor_ids)} rows and the loss has {len(labels)}: "
                "give the loss the batch that the memory was given"
            )
        affine = None if memory.scale is None or memory.shift is None else (memory.scale, memory.shift)
        return memory_loss(
            embeddings,
            labels,
            memory.rows,
            memory.labels,
            loss=self.loss,
            affine=affine,
            renormalise=memory.renormalise,
            own_ids=memory.anchor_ids,
            reference_ids=memory.sample_ids,
            reference_mask=memory.mask,
            reduction=self.reduction,
            backend=self.backend,
        )


def named_loss(loss: PairLoss | str) -> PairLoss:
    """Return `loss`, or the one of that name with its defaults.

    Raises:
        InputError: no such name; the message lists them.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in PAIR_LOSSES:
        raise InputError(f"no loss {loss!r}{suggestion(loss, PAIR_LOSSES)}; one of {', '.join(PAIR_LOSSES)}")
    return PAIR_LOSSES[loss]()
