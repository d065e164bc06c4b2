"""Losses between a batch of embeddings and a memory of them, without the matrix of pairs or a list of them.

`memory_loss` walks over the memory in tiles. Negatives are many and their weights are known up to one factor an
anchor, so their share of the gradient is summed in the same walk, as attention sums values; positives are few and are
walked over once more (`blocked.py`, `triton_*.py`). The affine map of moment matching is applied to the batch, so
that the memory is read as it is stored. `reference.py` says the same densely.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.memory_loss import reference as dense
from longview.ops.memory_loss.blocked import BlockedMemoryLoss
from longview.ops.memory_loss.losses import (
    PAIR_LOSSES,
    CircleLoss,
    ContrastiveLoss,
    InfoNCELoss,
    MultiSimilarityLoss,
    PairLoss,
    SupervisedContrastiveLoss,
    TripletLoss,
)
from longview.ops.memory_loss.pairs import Pairs, View
from longview.ops.memory_loss.path import Backend, backend_for

__all__ = [
    "PAIR_LOSSES",
    "CircleLoss",
    "ContrastiveLoss",
    "InfoNCELoss",
    "MultiSimilarityLoss",
    "PairLoss",
    "Reduction",
    "SupervisedContrastiveLoss",
    "TripletLoss",
    "memory_loss",
]

Reduction = Literal["mean_per_anchor", "sum", "mean_active", "none"]
REDUCTIONS: tuple[Reduction, ...] = ("mean_per_anchor", "sum", "mean_active", "none")


def memory_loss(
    embeddings: Tensor,
    labels: Tensor,
    reference: Tensor,
    reference_labels: Tensor,
    *,
    loss: PairLoss,
    affine: tuple[Tensor, Tensor] | None = None,
    renormalise: bool = False,
    own_ids: Tensor | None = None,
    reference_ids: Tensor | None = None,
    own_positions: Tensor | None = None,
    reference_mask: Tensor | None = None,
    reduction: Reduction = "mean_per_anchor",
    backend: Backend | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Return `loss` of every embedding against every row of `reference`, reduced.

    A pair is positive where the labels are equal. Similarities are inner products as given: normalise `embeddings`
    for cosines. They are accumulated in float32 (float64 for float64 inputs).

    Args:
        embeddings: (b, d) floating point, the anchors.
        labels: (b,) int64, any values.
        reference: (m, d) floating point, the memory, in the dtype it is stored in; m may be 0.
        reference_labels: (m,) int64.
        loss: which loss, with its settings.
        affine: (scale, shift), (d,) each: rows are seen as `reference * scale + shift` (moment matching). Constants:
            no gradient reaches them.
        renormalise: rows are seen divided by their norms, after `affine`. On a GPU up to 64 MiB of rows narrower than
            512 are held that way at a time.
        own_ids, reference_ids: (b,) and (m,) int64 sample ids; a pair of equal ids is left out.
        own_positions: (b,) int64 rows of `reference` that are the anchors themselves; negative for none.
        reference_mask: (m,) bool, the rows that take part; by default all.
        reduction: `mean_per_anchor` divides the sum by b; `mean_active` by the number of anchors with a loss above
            0, and for the contrastive loss positive and negative pairs apart, each by the number of pairs with a
            loss; `sum`; `none` returns the loss of each anchor, (b,).
        backend: `blocked`, `triton` or `reference` (dense); None = tiles, but on a GPU kernels for a 2-byte memory and
            dense products of up to a million pairs.
        check_finite: look for NaN and infinity in both sides first, which waits for the device.

    Gradients reach `embeddings`, and `reference` where it asks for them (a batch against itself; neither `affine`
    nor `renormalise` then). Tiles and kernels have no second derivative.

    Example:
        >>> z = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), dim=1)
        >>> memory = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
        >>> labels = torch.tensor([7, -1])
        >>> round(memory_loss(z, labels, memory, labels, loss=ContrastiveLoss()).item(), 4)  # (0.4 + 0.5) per anchor
        0.9

    Raises:
        InputError: shapes, dtypes, devices or settings that do not fit; with `check_finite` values that are not
            finite. The message gives what was expected and what came.
    """
    pairs = Pairs(labels, reference_labels, own_ids, reference_ids, own_positions, reference_mask)
    scale, shift = (None, None) if affine is None else affine
    view = View(scale, shift, renormalise)
    _check(embeddings, reference, pairs, view)
    if not isinstance(loss, PairLoss):
        raise InputError(f"loss must be one of {', '.join(k.__name__ for k in PAIR_LOSSES.values())}, got {loss!r}")
    if reduction not in REDUCTIONS:
        raise InputError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")
    if check_finite:
        _check_finite(embeddings, "embeddings")
        _check_finite(reference, "reference")
    chosen = backend_for(embeddings, reference, backend)
    apart = reduction == "mean_active" and isinstance(loss, ContrastiveLoss)
    if chosen == "triton":
        from longview.ops.memory_loss.fused import FusedMemoryLoss

        inside = {"mean_per_anchor": "mean", "sum": "sum", "mean_active": "none", "none": "none"}[reduction]
        inside = "apart" if apart else inside
        losses: Tensor = FusedMemoryLoss.apply(embeddings, reference, pairs, loss, view, inside, None)  # type: ignore[no-untyped-call]
        return _reduce(losses, reduction) if inside == "none" else losses
    if chosen == "blocked":
        losses = BlockedMemoryLoss.apply(embeddings, reference, pairs, loss, view, apart, None)  # type: ignore[no-untyped-call]
        return losses.sum() if apart else _reduce(losses, reduction)
    with torch.autocast(embeddings.device.type, enabled=False):
        if isinstance(loss, ContrastiveLoss) and apart:
            return dense.active_mean(dense.similarities(embeddings, reference, view), *dense.masks(pairs), loss)
        return _reduce(dense.anchor_losses(embeddings, reference, pairs, loss, view), reduction)


def _reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean_active":
        return losses.sum() / (losses.detach() > 0).sum().clamp(min=1)
    return losses.mean()


def _check(embeddings: Tensor, reference: Tensor, pairs: Pairs, view: View) -> None:
    if embeddings.dim() != 2 or reference.dim() != 2 or embeddings.shape[1] != reference.shape[1]:
        raise InputError(f"embeddings (b, d) and reference (m, d) expected, got {_of(embeddings)} and {_of(reference)}")
    if not (embeddings.is_floating_point() and reference.is_floating_point()):
        raise InputError(f"embeddings and reference must be floating point, got {_of(embeddings)}, {_of(reference)}")
    if not embeddings.numel():
        raise InputError(f"at least one embedding of one value expected, got {_of(embeddings)}")
    (b, d), m, device, int64 = embeddings.shape, reference.shape[0], embeddings.device, torch.int64
    for name, tensor, size, dtype in (
        ("labels", pairs.labels, b, int64),
        ("reference_labels", pairs.reference_labels, m, int64),
        ("own_ids", pairs.own_ids, b, int64),
        ("reference_ids", pairs.reference_ids, m, int64),
        ("own_positions", pairs.own_positions, b, int64),
        ("reference_mask", pairs.reference_mask, m, torch.bool),
        ("affine scale", view.scale, d, None),
        ("affine shift", view.shift, d, None),
    ):
        if tensor is None:
            continue
        right = tensor.is_floating_point() if dtype is None else tensor.dtype == dtype
        if not right or tensor.shape != (size,):
            wanted = "floating point" if dtype is None else str(dtype).removeprefix("torch.")
            raise InputError(f"{name} must be ({size},) {wanted}, got {_of(tensor)}")
        if tensor.device != device:
            raise InputError(f"{name} is on {tensor.device}, the embeddings are on {device}")
    if reference.device != embeddings.device:
        raise InputError(f"reference is on {reference.device}, the embeddings are on {embeddings.device}")
    if (pairs.own_ids is None) != (pairs.reference_ids is None):
        raise InputError("own_ids and reference_ids go together: give both or neither")
    if reference.requires_grad and torch.is_grad_enabled() and (view.scale is not None or view.renormalise):
        raise InputError("the reference gets a gradient only as it is: detach it, or leave affine and renormalise out")


def _check_finite(tensor: Tensor, name: str) -> None:
    bad = ~tensor.isfinite().all(1)
    if bool(bad.any()):
        rows = bad.nonzero().flatten().tolist()
        raise InputError(f"{name} must be finite: {len(rows)} of {len(tensor)} rows are not, first row {rows[0]}")


def _of(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
