"""Full softmax in blocks of queries: loss and both gradients in one sweep, never tokens × items.

With p = softmax(q·x) the gradients are p @ x − x[target] and pᵀ @ q − (targets' queries), so once a block of
logits exists three matrix products finish it and nothing needs to be recomputed in backward. Label smoothing
costs nothing more: the mean logit of a row is q · mean(x).

Shapes: n queries, r rows a block, V items, d width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longview.ops.softmax_loss.numerics import (
    SAFE_EXPONENT,
    accumulation_dtype,
    chained,
    exponentiate_,
    largest_logit,
    matmul_dtype,
    mean_of,
    product,
    refuse_second_derivative,
    rows_per_block,
    scaled,
)


class FullSoftmaxLoss(torch.autograd.Function):
    """`apply(queries, items, targets, temperature, label_smoothing, block, counted)` → mean loss, a scalar.

    Rows that do not count have a query of zero, so that no item gets a gradient from them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        items: Tensor,
        targets: Tensor,
        temperature: float,
        label_smoothing: float,
        block: int | None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss, a scalar, and keep its gradients, made on the way."""
        dtype = matmul_dtype(queries, items)
        need_queries, need_items = ctx.needs_input_grad[:2]
        with torch.autocast(queries.device.type, enabled=False):
            sweep = _Sweep(queries, items, targets, dtype, 1 / temperature, label_smoothing)
            losses, grad_queries, grad_items = sweep.run(block, need_queries, need_items)
            loss, ctx.factor = mean_of(losses, counted)
        ctx.save_for_backward(
            None if grad_queries is None else grad_queries.to(queries.dtype),
            None if grad_items is None else grad_items.to(items.dtype),
        )
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        factor = chained(grads[0], ctx.factor)
        found = [None if saved is None else scaled(saved, factor) for saved in ctx.saved_tensors]
        return (*found, None, None, None, None, None)


class _Sweep:
    """One pass over the queries."""

    def __init__(
        self, queries: Tensor, items: Tensor, targets: Tensor, dtype: torch.dtype, scale: float, smoothing: float
    ) -> None:
        self.wide = accumulation_dtype(dtype)
        self.scale, self.smoothing, self.targets = scale, smoothing, targets
        self.queries_nd = queries.to(self.wide) * scale
        self.items_Vd = items.to(dtype)
        self.mean_item_d = items.mean(0, dtype=self.wide) if smoothing else None
        # On an accelerator reading the bound would wait for the device, which costs more than the two passes.
        self.bounded = queries.device.type == "cpu" and largest_logit(self.queries_nd, items) < SAFE_EXPONENT

    def run(
        self, block: int | None, need_queries: bool, need_items: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the losses (n,), and the gradients of queries (n, d) and items (V, d) where they are needed."""
        n, num_items = len(self.queries_nd), len(self.items_Vd)
        rows = min(n, rows_per_block(num_items, self.queries_nd.device, block))
        losses_n = self.queries_nd.new_empty(n)
        grad_nd = torch.empty_like(self.queries_nd) if need_queries else None
        grad_Vd = self.queries_nd.new_zeros(self.items_Vd.shape) if need_items else None
        buffer = self.queries_nd.new_empty(rows, num_items) if self.items_Vd.dtype == self.wide else None
        for start in range(0, n, rows):
            chosen = slice(start, min(start + rows, n))
            out = None if buffer is None else buffer[: chosen.stop - start]
            exp_rV, inverse_r1, losses_n[chosen] = self._probabilities(chosen, out)
            if need_queries or need_items:
                self._gradients(chosen, exp_rV, inverse_r1, grad_nd, grad_Vd)
        if grad_nd is not None:
            grad_nd.mul_(self.scale)
        return losses_n, grad_nd, grad_Vd

    def _probabilities(self, chosen: slice, out: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return unnormalised probabilities (r, V), what normalises them (r, 1), and the losses (r,)."""
        query_rd = self.queries_nd[chosen]
        logits = product(query_rd.to(self.items_Vd.dtype), self.items_Vd.mT, out=out)
        target_r1 = self.targets[chosen, None]
        target_logit_r1 = logits.gather(1, target_r1)
        # Summed apart: p − 1 of a target, as a difference, would lose its digits where p is near 1.
        logits.scatter_(1, target_r1, float("-inf"))
        shift, others_r1 = exponentiate_(logits, self.bounded, target_logit_r1)
        own_r1 = (target_logit_r1 - shift).exp_()
        total_r1 = own_r1 + others_r1
        # p − onehot here, so the two products below also carry the target's share of the gradient.
        target_weight_r1 = others_r1.mul_(self.smoothing - 1)
        wanted_r1 = target_logit_r1
        if self.mean_item_d is not None:
            mean_r1 = (query_rd @ self.mean_item_d)[:, None]
            wanted_r1 = wanted_r1 * (1 - self.smoothing) + mean_r1 * self.smoothing
            target_weight_r1.add_(own_r1, alpha=self.smoothing)
        logits.scatter_(1, target_r1, target_weight_r1)
        losses = total_r1.log() + (shift - wanted_r1)
        return logits, total_r1.reciprocal_(), losses[:, 0]

    def _gradients(
        self, chosen: slice, exp_rV: Tensor, inverse_r1: Tensor, grad_nd: Tensor | None, grad_Vd: Tensor | None
    ) -> None:
        weight = 1 / len(self.queries_nd)
        low = self.items_Vd.dtype
        exp_low_rV = exp_rV if low == self.wide else exp_rV.mul_(inverse_r1).to(low)
        inverse = inverse_r1 * weight if low == self.wide else weight
        if grad_nd is not None:
            grad_rd = product(exp_low_rV, self.items_Vd, out=grad_nd[chosen] if low == self.wide else None)
            grad_rd.mul_(inverse)
            if self.mean_item_d is not None:
                grad_rd.sub_(self.mean_item_d * (self.smoothing * weight))
            if low != self.wide:
                grad_nd[chosen] = grad_rd
        if grad_Vd is not None:
            query_rd = self.queries_nd[chosen] * inverse
            if low == self.wide:
                grad_Vd.addmm_(exp_rV.mT, query_rd)
            else:
                grad_Vd.add_(product(exp_low_rV.mT, query_rd.to(low)))
            if self.smoothing:
                total_d = self.queries_nd[chosen].sum(0)
                grad_Vd.sub_(total_d * (self.smoothing * weight / len(grad_Vd)))
