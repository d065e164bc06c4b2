"""Sampled softmax with negatives shared by groups of queries: matrix products, not gathers.

Shapes: G groups of s queries (the last ones padded with zero queries, which add nothing), r rows of a block,
m negatives a group, d width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from longview.ops.embedding import sparse_gradient, sum_by_id
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
)


class Sample(NamedTuple):
    """`negatives` (G, m) int64 and the log of the sampling probability of negatives (G, m) and targets (n,)."""

    negatives: Tensor
    negative_log_q: Tensor | None
    target_log_q: Tensor | None


class SampledSoftmaxLoss(torch.autograd.Function):
    """`apply(queries, items, targets, sample, temperature, sparse, block, counted)` → mean loss, a scalar.

    Rows that do not count have a query of zero, so that no item gets a gradient from them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        items: Tensor,
        targets: Tensor,
        sample: Sample,
        temperature: float,
        sparse: bool,
        block: int | None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss, a scalar, and keep what its gradients are made of."""
        dtype = matmul_dtype(queries, items)
        with torch.autocast(queries.device.type, enabled=False):
            sweep = _Sweep(queries, items, targets, sample, dtype, 1 / temperature)
            loss, ctx.factor = mean_of(sweep.run(block, any(ctx.needs_input_grad[:2])), counted)
            if any(ctx.needs_input_grad[:2]):
                ctx.save_for_backward(*sweep.gradients(), targets, sample.negatives)
        ctx.sparse, ctx.like = sparse, (queries.dtype, items.dtype, items.shape)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries (n, d) and items (V, d), the rest None."""
        refuse_second_derivative()
        grad_queries, grad_targets, grad_negatives, targets, negatives = ctx.saved_tensors
        query_dtype, item_dtype, shape = ctx.like
        factor = chained(grads[0], ctx.factor)
        found: list[Tensor | None] = [None, None]
        if ctx.needs_input_grad[0]:
            found[0] = (grad_queries * factor).to(query_dtype)
        if ctx.needs_input_grad[1] and (ctx.sparse or grad_targets.is_cuda):
            # On a GPU `index_add_` would add repeated items in whatever order they come.
            ids, rows = torch.cat([targets, negatives.flatten()]), torch.cat([grad_targets, grad_negatives]) * factor
            found[1] = (sparse_gradient if ctx.sparse else sum_by_id)(ids, rows, item_dtype, shape)
        elif ctx.needs_input_grad[1]:
            # The table's gradient is made here, once: a pass over a large table costs more than the loss.
            table = grad_targets.new_zeros(shape)
            table.index_add_(0, targets, grad_targets * factor)
            table.index_add_(0, negatives.flatten(), grad_negatives * factor)
            found[1] = table.to(item_dtype)
        return (*found, None, None, None, None, None, None)


class _Sweep:
    """One pass over the queries; with gradients, they are filled as it goes."""

    def __init__(
        self, queries: Tensor, items: Tensor, targets: Tensor, sample: Sample, dtype: torch.dtype, scale: float
    ) -> None:
        self.num_queries, width = queries.shape
        self.scale, self.low, self.wide = scale, dtype, accumulation_dtype(dtype)
        self.sample = sample
        groups, num_negatives = sample.negatives.shape
        self.padding = -self.num_queries % groups
        grouped = (groups, (self.num_queries + self.padding) // groups)
        query_nd = queries.to(self.wide) * scale
        target_nd = items.index_select(0, targets).to(self.wide)
        logit_n = (query_nd * target_nd).sum(-1)
        if sample.target_log_q is not None:
            logit_n = logit_n - sample.target_log_q.to(self.wide)
        self.query_Gsd = self._pad(query_nd).view(*grouped, width)
        self.target_Gsd = self._pad(target_nd).view(*grouped, width)
        self.target_logit_Gs = self._pad(logit_n).view(grouped)
        self.target_Gs = self._pad(targets.int(), -1).view(grouped)
        self.negative_Gmd = items.index_select(0, sample.negatives.flatten()).to(self.low).view(groups, -1, width)
        self.bounded = queries.device.type == "cpu" and self._bound(query_nd, target_nd) < SAFE_EXPONENT
        self.columns = num_negatives
        self.losses_Gs = query_nd.new_empty(grouped)

    def _pad(self, values: Tensor, value: float = 0.0) -> Tensor:
        if not self.padding:
            return values
        return functional.pad(values, [0, 0] * (values.dim() - 1) + [0, self.padding], value=value)

    def _bound(self, query_nd: Tensor, target_nd: Tensor) -> float:
        logs = [log for log in (self.sample.negative_log_q, self.sample.target_log_q) if log is not None]
        extra = max((float(log.abs().amax()) for log in logs), default=0.0)
        return max(largest_logit(query_nd, rows, extra) for rows in (self.negative_Gmd, target_nd))

    def run(self, block: int | None, gradients: bool) -> Tensor:
        """Return the losses (n,); with `gradients`, fill those of their mean."""
        groups, size = self.target_Gs.shape
        rows = rows_per_block(self.columns, self.query_Gsd.device, block)
        if gradients:
            self.grad_Gsd = torch.empty_like(self.query_Gsd)
            self.grad_negative_Gmd = self.query_Gsd.new_zeros(self.negative_Gmd.shape)
            self.target_weight_Gs = torch.empty_like(self.target_logit_Gs)
        at_once = max(1, rows // size)
        for group in range(0, groups, at_once):
            for row in range(0, size, rows):
                self._block(slice(group, group + at_once), slice(row, row + rows), gradients)
        return self.losses_Gs.flatten()[: self.num_queries]

    def _block(self, group: slice, row: slice, gradients: bool) -> None:
        query, negative = self.query_Gsd[group, row], self.negative_Gmd[group]
        target_logit = self.target_logit_Gs[group, row].unsqueeze(-1)
        exp = product(query.to(self.low), negative.mT)  # (g, r, m) logits
        if self.sample.negative_log_q is not None:
            exp.sub_(self.sample.negative_log_q[group, None].to(self.wide))
        same = self.target_Gs[group, row].unsqueeze(-1) == self.sample.negatives[group, None].int()
        shift, others = exponentiate_(exp.masked_fill_(same, float("-inf")), self.bounded, target_logit)
        total = (target_logit - shift).exp_().add_(others)
        self.losses_Gs[group, row] = (total.log() + (shift - target_logit)).squeeze(-1)
        if not gradients:
            return
        inverse = total.reciprocal_().div_(self.num_queries)
        # p − 1 of the target, without the difference, which would lose its digits where p is near 1.
        self.target_weight_Gs[group, row] = (others * inverse).neg_().squeeze(-1)
        if self.low != self.wide:
            exp, inverse = exp.mul_(inverse).to(self.low), torch.ones_like(inverse)
        self.grad_Gsd[group, row] = product(exp, negative).mul_(inverse)
        self.grad_negative_Gmd[group] += product(exp.mT, (query * inverse).to(self.low))

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the queries and target rows, (n, d) each, and of the negatives' rows, (G m, d)."""
        n, width = self.num_queries, self.query_Gsd.shape[-1]
        weight = self.target_weight_Gs.unsqueeze(-1)
        grad_queries = self.grad_Gsd.addcmul_(self.target_Gsd, weight).mul_(self.scale).view(-1, width)[:n]
        grad_targets = (self.query_Gsd * weight).view(-1, width)[:n]
        return grad_queries, grad_targets, self.grad_negative_Gmd.view(-1, width)
