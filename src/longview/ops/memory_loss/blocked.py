"""The memory losses in tiles of plain torch, on any device, with gradients to the batch and, asked for, the memory.

The batch's gradient is made in the forward pass (`forms` says why one walk over the negatives is enough), so that the
backward pass only multiplies. The memory's gradient needs the sums of the whole memory; the backward pass makes the
tiles again for it.

Shapes: b anchors, m rows of the memory, d width, c rows of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longview.ops.memory_loss.blocked_tiles import TiledMemory
from longview.ops.memory_loss.end import End, finish, log_of
from longview.ops.memory_loss.forms import Form, Plan, plan_of
from longview.ops.memory_loss.losses import PairLoss
from longview.ops.memory_loss.pairs import Pairs, View
from longview.ops.memory_loss.tiles import (
    NO_ROW,
    Running,
    add_product,
    add_tile,
    circle,
    over_margin,
    rate_of,
    weights_at_end,
)
from longview.ops.softmax_loss.numerics import product, refuse_second_derivative

LEAST, LARGEST = 1e-30, 1e30  # a sum of powers outside has lost digits, or is about to overflow
ABOVE = 1 << 12  # powers that rounded exponents may be above the guess: so far off, a power errs by 2 %
SAMPLE = 2048  # rows of the memory that a largest exponent is guessed from


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
        """Return the losses of the anchors (b,), and keep their gradient (b, d), made on the way."""
        with torch.autocast(embeddings.device.type, enabled=False):
            walks = _Walks(TiledMemory(embeddings, reference, pairs, view, tile))
            plan = plan_of(loss)
            positives, negatives = walks.both(plan, ctx.needs_input_grad[0])
            end = finish(plan, positives, negatives, apart)
            own = walks.gradient(end, positives, negatives) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(own if own is None else own.to(embeddings.dtype))
        ctx.rest = (walks, plan, positives, negatives, end) if ctx.needs_input_grad[1] else None
        return end.losses.flatten()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (own,) = ctx.saved_tensors
        given = grads[0][:, None]
        grad_reference = None
        if ctx.rest is not None:
            walks, *rest = ctx.rest
            with torch.autocast(given.device.type, enabled=False):
                grad_reference = walks.reference_gradient(*rest, given).to(walks.tiled.memory.dtype)
        grad = None if own is None else own * given.to(own.dtype)
        return grad, grad_reference, None, None, None, None, None


class _Walks:
    """The walks of a loss over the tiles of its memory."""

    def __init__(self, tiled: TiledMemory) -> None:
        self.tiled = tiled

    def both(self, plan: Plan, gradient: bool) -> tuple[Running, Running]:
        """Return the sums over the positives and over the negatives."""
        if plan.positives_first:
            positives = self._walk(plan.positives, None, gradient)
            return positives, self._walk(plan.negatives, positives.first * plan.positives.sign, gradient)
        negatives = self._walk(plan.negatives, None, gradient)
        given = log_of(negatives) if plan.positives.sums == "pull" else None
        return self._walk(plan.positives, given, gradient), negatives

    def _walk(self, form: Form, given: Tensor | None, gradient: bool) -> Running:
        tiled = self.tiled
        guessed = form.sums in ("power", "circle") and form.pairs != "positive" and len(tiled.memory) > 0
        if guessed and not tiled.memory.is_cuda:
            # One pass less a tile. An accelerator would have to be asked how it went.
            guess = self._guess(form)
            running = self._sums(form, given, gradient, guess)
            most = min(LARGEST, len(tiled.memory) * ABOVE) if tiled.rough(form, guess) else LARGEST
            if bool(((running.second > LEAST) & (running.second < most)).all()):
                return running
        return self._sums(form, given, gradient, None)

    def _sums(self, form: Form, given: Tensor | None, gradient: bool, largest: Tensor | None) -> Running:
        """Return the sums of one walk; `largest` (b, 1) stands for the largest exponents where it is given."""
        tiled = self.tiled
        running = Running.start(form, tiled.embeddings, tiled.parts if gradient else 0, largest)
        for rows, seen_cd, x, near in tiled.tiles(form, tiled.rough(form, largest), largest):
            if form.sums == "margin" and not x.is_cuda:  # an accelerator would have to be asked how many
                seen_cd, x = over_margin(seen_cd, x)
            if form.sums == "best" and given is not None:
                self._below(x, given)
            weights = add_tile(running, form, x, near, given, rows, largest is not None)
            if running.grads is not None and form.sums != "best":
                if tiled.low == tiled.wide:
                    add_product(running.grads, weights, seen_cd.to(tiled.wide))
                else:
                    running.grads += product(weights.to(tiled.low), seen_cd.to(tiled.low))
            del x, near, weights
        if running.grads is not None:
            running.grads = running.grads.sum(0)
        if gradient and form.sums == "best":
            self._gather(running)
        return running

    def _guess(self, form: Form) -> Tensor:
        """Return about the largest exponent of each anchor, (b, 1), exact in the dtype of the products."""
        tiled = self.tiled
        ordinary = tiled.columns(form).logical_not_().nonzero().flatten()
        if not len(ordinary):
            return tiled.embeddings.new_zeros(len(tiled.embeddings), 1)
        some = tiled.seen(tiled.memory[ordinary[:: -(-len(ordinary) // SAMPLE)]])
        products = product(tiled.embeddings.to(tiled.low), some.to(tiled.low).mT)
        # Exponents grow, or those of a circle are convex: the largest one is at an end.
        ends = torch.cat(products.aminmax(dim=1, keepdim=True), 1).to(tiled.wide) * form.sign
        if form.sums == "circle":
            ends, _ = circle(form, ends.add_((form.u + form.v) / 2), None, None)
        else:
            ends = (ends + form.u) * rate_of(form)
        return ends.amax(1, keepdim=True).to(tiled.low).to(tiled.wide)

    def _gather(self, running: Running) -> None:
        """Make the weighted sums of single rows."""
        tiled = self.tiled
        known = running.second != NO_ROW
        if len(tiled.memory):
            rows_bd = tiled.seen(tiled.memory[running.second.where(known, 0).flatten()]).to(tiled.wide)
            running.grads = rows_bd * known.to(tiled.wide)

    def _below(self, x: Tensor, given: Tensor) -> None:
        """Put the values of a tile (b, c) that are not less than `given` (b, 1) to -inf, or as low as numbers go."""
        tiled = self.tiled
        if x.is_cuda:
            x.masked_fill_(x >= given, -torch.inf)
        else:  # libraries for CPUs apply a mask of numbers ten times as fast as one of truths
            over = torch.ge(x, given, out=tiled.buffers.matrix("more", x.mT.shape, tiled.wide).mT)
            x.add_(over, alpha=torch.finfo(x.dtype).min)

    def gradient(self, end: End, positives: Running, negatives: Running) -> Tensor:
        """Return the gradients of the anchors' losses, (b, d)."""
        assert positives.grads is not None
        assert negatives.grads is not None
        return torch.addcmul(end.positive * positives.grads, end.negative, negatives.grads).contiguous()

    def reference_gradient(self, plan: Plan, positives: Running, negatives: Running, end: End, given: Tensor) -> Tensor:
        """Return the gradient of the memory, (m, d); `given` (b, 1) are the gradients of the anchors' losses."""
        tiled = self.tiled
        total = torch.zeros_like(tiled.memory, dtype=tiled.wide)
        for form, walk, factor, other in (
            (plan.positives, positives, end.positive, log_of(negatives) if plan.positives.sums == "pull" else None),
            (plan.negatives, negatives, end.negative, None),
        ):
            sides = (tiled.embeddings * (factor * given)).to(tiled.low)
            for rows, _, x, near in tiled.tiles(form):
                weights = weights_at_end(form, x, near, walk.first, walk.second, other, rows)
                total[rows] += product(weights.to(tiled.low).mT, sides)
        return total
