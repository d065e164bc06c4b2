# mypy: disable-error-code="no-untyped-call"
"""The memory losses on a GPU: the kernels `triton_*`, launched as is `prepared`.

Losses and gradients are made together in the forward pass; the backward pass multiplies. Bits do not depend on the
run: every sum has one order, and splits are joined in theirs.

Shapes: n anchors, d width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longview.ops.kernels import begins_early, on_device_of
from longview.ops.memory_loss.cases import Case
from longview.ops.memory_loss.forms import plan_of
from longview.ops.memory_loss.losses import PairLoss
from longview.ops.memory_loss.pairs import Pairs, View
from longview.ops.memory_loss.prepared import Prepared, prepared_for
from longview.ops.softmax_loss.numerics import refuse_second_derivative
from longview.ops.softmax_loss.triton_tile import Tile


class FusedMemoryLoss(torch.autograd.Function):
    """`apply(embeddings, reference, pairs, loss, view, reduction, tile)` → a scalar, or losses of the anchors (b,).

    `reduction`: `mean`, `sum`, `apart` (the contrastive loss over active pairs) or `none`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        reference: Tensor,
        pairs: Pairs,
        loss: PairLoss,
        view: View,
        reduction: str,
        tile: tuple[Tile, int] | None,
    ) -> Tensor:
        """Return the loss, and keep its gradient (b, d), made on the way."""
        with on_device_of(reference):
            value, grads = solve(embeddings, reference, pairs, loss, view, reduction, tile, ctx.needs_input_grad[0])
        ctx.save_for_backward(grads)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (own,) = ctx.saved_tensors
        if own is None:
            return (None,) * 7
        given = grads[0] if grads[0].dim() == 0 else grads[0].to(own.dtype)[:, None]
        return own * given, None, None, None, None, None, None


def solve(
    embeddings: Tensor,
    reference: Tensor,
    pairs: Pairs,
    loss: PairLoss,
    view: View,
    reduction: str,
    tile: tuple[Tile, int] | None,
    gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, or with `none` losses (n,), float32, and the gradients of the anchors (n, d) where wanted."""
    device = reference.device
    embeddings, memory = embeddings.contiguous(), reference.contiguous()
    if memory.dtype not in (torch.bfloat16, torch.float16):
        memory = memory.float()
    labels, ids, mask = pairs.labels.contiguous(), pairs.reference_ids, pairs.reference_mask
    scale = shift = embeddings
    if view.scale is not None and view.shift is not None:
        scale, shift = view.scale.contiguous(), view.shift.contiguous()
    m, width = memory.shape
    case = Case(
        n=embeddings.shape[0], m=m, width=width, embeddings=embeddings.dtype, memory=memory.dtype, plan=plan_of(loss),
        reduction=reduction, gradient=gradient, mapped=None if view.scale is None else (scale.dtype, shift.dtype),
        divided=view.renormalise, ids=ids is not None, positions=pairs.own_positions is not None,
        masked=mask is not None, early=begins_early(device), tile=tile,
    )  # fmt: skip
    prepared = prepared_for(case)
    value = torch.empty((case.n,) if reduction == "none" else (), dtype=torch.float32, device=device)
    grads = torch.empty_like(embeddings) if gradient else None
    reference_labels = pairs.reference_labels.contiguous()
    tensors = (
        embeddings, memory, scale, shift, labels,
        *(labels if own is None else own.contiguous() for own in (pairs.own_ids, pairs.own_positions)),
        reference_labels, reference_labels if ids is None else ids.contiguous(),
        reference_labels if mask is None else mask.contiguous().view(torch.uint8),
        value, value if grads is None else grads,
    )  # fmt: skip
    run(prepared, tensors)
    return value, grads


def run(prepared: Prepared, tensors: tuple[Tensor, ...]) -> None:
    """Launch what is prepared on its inputs."""
    recipe = prepared.recipe
    room = recipe.room(tensors[1].device)
    if prepared.case.reduction != "apart":
        recipe.run(room, tensors)
        return
    recipe.run(room, tensors, slice(None, -1))
    # What the pairs of an anchor weigh depends on how many of both kinds are active, of all anchors.
    sums = (walk.sums()[1] for walk in (prepared.positives, prepared.negatives))
    counts = torch.stack([recipe.buffer(room, name).sum() for name in sums])
    torch.reciprocal(counts.clamp(min=1), out=recipe.buffer(room, "scales"))
    recipe.run(room, tensors, slice(-1, None))
