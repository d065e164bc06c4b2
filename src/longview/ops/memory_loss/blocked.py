"""The memory losses in tiles of plain torch, on any device, with gradients to the batch and, asked for, the memory.

The batch's gradient is made in the forward pass (`forms` says why one walk over the negatives is enough), so that the
backward pass only multiplies. The memory's gradient needs the sums of the whole memory; the backward pass makes the
tiles again for it.

Shapes: b anchors, m rows of the memory, d width, c rows of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longview.ops.memory_loss.end import End, finish, log_of
from longview.ops.memory_loss.forms import Form, Plan, plan_of
from longview.ops.memory_loss.losses import PairLoss
from longview.ops.memory_loss.pairs import Pairs, View
from longview.ops.memory_loss.reference import TINY
from longview.ops.memory_loss.tiles import NO_ROW, Running, add_tile, weights_at_end
from longview.ops.softmax_loss.numerics import (
    accumulation_dtype,
    largest_logit,
    product,
    refuse_second_derivative,
)

CPU_BLOCK = 1 << 20  # similarities a tile: 4 MB of float32, which stays in the last-level cache between passes
DEVICE_BLOCK = 1 << 24
HIGHEST, LOWEST = 60.0, -80.0  # exponents whose powers float32 holds, and sums of 1e9 of them
FEW = 4  # a tile's special columns are masked apart where they are less than one in FEW


class BlockedMemoryLoss(torch.autograd.Function):
    """`apply(embeddings, reference, pairs, loss, view, apart, tile)` → losses of the anchors, (b,)."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        reference: Tensor,
        pairs: Pairs,
        loss: PairLoss,
        view: View,
        apart: bool,
        tile: int | None,
    ) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            problem = _Problem(embeddings, reference, pairs, view, tile)
            plan = plan_of(loss)
            positives, negatives = problem.walks(plan, ctx.needs_input_grad[0])
            end = finish(plan, positives, negatives, apart)
            own = problem.gradient(end, positives, negatives) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(own if own is None else own.to(embeddings.dtype))
        ctx.rest = (problem, plan, positives, negatives, end) if ctx.needs_input_grad[1] else None
        return end.losses.flatten()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (own,) = ctx.saved_tensors
        given = grads[0][:, None]
        grad_reference = None
        if ctx.rest is not None:
            problem, *rest = ctx.rest
            with torch.autocast(given.device.type, enabled=False):
                grad_reference = problem.reference_gradient(*rest, given).to(problem.memory.dtype)
        grad = None if own is None else own * given.to(own.dtype)
        return grad, grad_reference, None, None, None, None, None


class _Problem:
    """Operands of one loss: queries in the dtype of the products, and which rows of the memory are special."""

    def __init__(self, embeddings: Tensor, reference: Tensor, pairs: Pairs, view: View, tile: int | None) -> None:
        wide = accumulation_dtype(torch.promote_types(embeddings.dtype, reference.dtype))
        half = reference.is_cuda and reference.dtype in (torch.bfloat16, torch.float16) and wide == torch.float32
        self.wide, self.low = wide, reference.dtype if half else wide
        self.embeddings, self.memory = embeddings.detach().to(wide), reference.detach()
        self.query, self.constant = self.embeddings, self.embeddings.new_zeros(len(embeddings), 1)
        self.pairs, self.view = pairs, view
        if view.scale is not None and view.shift is not None:
            self.scale, self.shift = view.scale.to(wide), view.shift.to(wide)
            self.query, self.constant = self.embeddings * self.scale, (self.embeddings @ self.shift)[:, None]
        block = CPU_BLOCK if reference.device.type == "cpu" else DEVICE_BLOCK
        self.size = tile or max(64, block // len(embeddings))
        self.hit, self.special = self._special()

    def _special(self) -> tuple[Tensor, Tensor]:
        """Return the rows that some anchor has for a positive, and those that are left out for some or all."""
        pairs = self.pairs
        hit = _among(pairs.reference_labels, pairs.labels)
        out = torch.zeros_like(hit)
        if pairs.own_ids is not None and pairs.reference_ids is not None:
            out |= _among(pairs.reference_ids, pairs.own_ids)
        if pairs.own_positions is not None:
            known = pairs.own_positions[(pairs.own_positions >= 0) & (pairs.own_positions < len(out))]
            out[known] = True
        if pairs.reference_mask is not None:
            out |= ~pairs.reference_mask
            hit &= pairs.reference_mask
        return hit.nonzero().flatten(), out

    def walks(self, plan: Plan, gradient: bool) -> tuple[Running, Running]:
        """Return the sums over the positives and over the negatives."""
        if plan.positives_first:
            positives = self._walk(plan.positives, None, gradient)
            return positives, self._walk(plan.negatives, positives.first * plan.positives.sign, gradient)
        negatives = self._walk(plan.negatives, None, gradient)
        given = log_of(negatives) if plan.positives.sums == "pull" else None
        return self._walk(plan.positives, given, gradient), negatives

    def _walk(self, form: Form, given: Tensor | None, gradient: bool) -> Running:
        bounded = form.sums == "power" and self._bounded(form)
        weighted = gradient and form.sums != "best"
        running = Running.start(form, self.query, bounded, gradient)
        for rows, memory_cd, x in self._tiles(form):
            weights = add_tile(running, form, x, given, rows, bounded)
            if weighted and self._any(form, weights):
                self._add_gradient(running, weights, memory_cd)
        if gradient and form.sums == "best":
            self._gather(running)
        return running

    def _any(self, form: Form, weights: Tensor) -> bool:
        """Return whether a tile has a weight; on an accelerator the answer costs more than the product."""
        return form.sums != "margin" or weights.is_cuda or bool(weights.any())

    def _add_gradient(self, running: Running, weights: Tensor, memory_cd: Tensor) -> None:
        assert running.grads is not None
        if self.view.renormalise:
            weights = weights * self._inverse_norms(memory_cd)
        if self.view.scale is not None:
            running.mass += weights.sum(1, keepdim=True)
        if self.low == self.wide:
            running.grads.addmm_(weights, memory_cd)
        else:
            running.grads += product(weights.to(self.low), memory_cd)

    def _gather(self, running: Running) -> None:
        """Make the weighted sums of single rows."""
        known = running.second != NO_ROW
        if not len(self.memory):
            return
        rows_bd = self.memory[running.second.where(known, 0).flatten()].to(self.wide)
        weights = known.to(self.wide)
        if self.view.renormalise:
            weights = weights * self._inverse_norms(rows_bd).mT
        running.mass = weights
        running.grads = rows_bd * weights

    def _bounded(self, form: Form) -> bool:
        """Return whether no power of the form can overflow; asking an accelerator costs more than it saves."""
        if self.memory.is_cuda or not len(self.memory):
            return False
        if self.view.renormalise:
            bound = float(torch.linalg.vector_norm(self.embeddings, dim=1).amax())
        else:
            bound = largest_logit(self.query, self.memory, float(self.constant.abs().amax()))
        return form.factor * (bound + form.u) < HIGHEST and form.factor * (form.u - bound) > LOWEST

    def _tiles(self, form: Form) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows (c,), the memory (c, d) in the dtype of the products, and the values of the form (b, c)."""
        positive = form.pairs == "positive"
        scaled = form.sign * (form.factor if form.sums in ("power", "pull") else 1.0)
        query = (self.query * scaled).to(self.low)
        special = self._columns(form)
        for start in range(0, len(self.hit) if positive else len(self.memory), self.size):
            stop = start + self.size
            if positive:
                rows = self.hit[start:stop]
                memory_cd = self.memory[rows].to(self.low)
            else:
                memory_cd = self.memory[start:stop].to(self.low)
                rows = torch.arange(start, start + len(memory_cd), device=memory_cd.device)
            x = product(query, memory_cd.mT)
            if self.view.scale is not None:
                x.add_(self.constant * scaled)
            if self.view.renormalise:
                x.mul_(self._inverse_norms(memory_cd))
            if form.sums == "power" and form.u:
                x.add_(form.factor * form.u)
            elif form.sums == "margin":
                x.sub_(form.u)
            self._mask(form, x, rows, special if positive else special[start:stop])
            yield rows, memory_cd, x

    def _columns(self, form: Form) -> Tensor:
        """Return (m,) which columns a walk has to look at pair by pair; the positives' walk looks at all."""
        if form.pairs == "positive":
            return self.special
        special = self.special.clone()
        if form.pairs == "negative":
            special[self.hit] = True
        return special

    def _mask(self, form: Form, x: Tensor, rows: Tensor, special: Tensor) -> None:
        """Put -inf where a pair of the tile does not count."""
        if form.pairs == "positive":
            x.masked_fill_(~self._taken(form, rows), -torch.inf)
            return
        places = special.nonzero().flatten()
        if len(places) * FEW < len(rows):
            if len(places):
                x[:, places] = x[:, places].masked_fill_(~self._taken(form, rows[places]), -torch.inf)
        else:
            x.masked_fill_(~self._taken(form, rows), -torch.inf)

    def _taken(self, form: Form, rows: Tensor) -> Tensor:
        """Return which pairs of the anchors and `rows` count, (b, c)."""
        pairs = self.pairs
        labels = pairs.reference_labels[rows]
        if form.pairs == "positive":
            taken = pairs.labels[:, None] == labels[None, :]
        elif form.pairs == "negative":
            taken = pairs.labels[:, None] != labels[None, :]
        else:
            taken = torch.ones((len(pairs.labels), len(rows)), dtype=torch.bool, device=rows.device)
        if pairs.own_ids is not None and pairs.reference_ids is not None:
            taken &= pairs.own_ids[:, None] != pairs.reference_ids[rows][None, :]
        if pairs.own_positions is not None:
            taken &= pairs.own_positions[:, None] != rows[None, :]
        if pairs.reference_mask is not None:
            taken &= pairs.reference_mask[rows][None, :]
        return taken

    def _inverse_norms(self, memory_cd: Tensor) -> Tensor:
        """Return 1 / the norms of rows as they are seen, (1, c)."""
        seen = memory_cd.to(self.wide)
        if self.view.scale is not None:
            seen = torch.addcmul(self.shift, seen, self.scale)
        inverse: Tensor = 1 / torch.linalg.vector_norm(seen, dim=1).clamp(min=TINY)
        return inverse[None, :]

    def gradient(self, end: End, positives: Running, negatives: Running) -> Tensor:
        """Return the gradients of the anchors' losses, (b, d)."""
        assert positives.grads is not None
        assert negatives.grads is not None
        grad = torch.addcmul(end.positive * positives.grads, end.negative, negatives.grads)
        if self.view.scale is None:
            return grad
        mass = end.positive * positives.mass + end.negative * negatives.mass
        return grad * self.scale + mass * self.shift

    def reference_gradient(self, plan: Plan, positives: Running, negatives: Running, end: End, given: Tensor) -> Tensor:
        """Return the gradient of the memory, (m, d); `given` (b, 1) are the gradients of the anchors' losses."""
        total = torch.zeros_like(self.memory, dtype=self.wide)
        for form, walk, factor, other in (
            (plan.positives, positives, end.positive, log_of(negatives) if plan.positives.sums == "pull" else None),
            (plan.negatives, negatives, end.negative, None),
        ):
            sides = (self.embeddings * (factor * given)).to(self.low)
            for rows, _, x in self._tiles(form):
                weights = weights_at_end(form, x, walk.first, walk.second, other, rows)
                total[rows] += product(weights.to(self.low).mT, sides)
        return total


def _among(keys: Tensor, wanted: Tensor) -> Tensor:
    """Return which of `keys` (m,) are in `wanted` (b,), by a search in the sorted one."""
    ordered = wanted.sort().values
    place = torch.searchsorted(ordered, keys).clamp_(max=len(ordered) - 1)
    return ordered[place] == keys
