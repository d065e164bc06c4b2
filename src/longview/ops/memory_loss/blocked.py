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

from longview.ops.memory_loss.buffers import Buffers
from longview.ops.memory_loss.end import End, finish, log_of
from longview.ops.memory_loss.forms import Form, Plan, plan_of
from longview.ops.memory_loss.losses import PairLoss
from longview.ops.memory_loss.pairs import Pairs, View, among, left_out
from longview.ops.memory_loss.path import fast_products
from longview.ops.memory_loss.reference import TINY
from longview.ops.memory_loss.tiles import (
    NO_ROW,
    Running,
    add_product,
    add_tile,
    circle,
    over_margin,
    rate_of,
    value_at,
    weights_at_end,
)
from longview.ops.softmax_loss.numerics import (
    accumulation_dtype,
    product,
    refuse_second_derivative,
)

# Similarities a tile: 4 MB of float32. Less stays nearer to its core, but threads wait for each other once a pass.
CPU_BLOCK = 1 << 20
DEVICE_BLOCK = 1 << 24
LEAST, LARGEST = 1e-30, 1e30  # a sum of powers outside has lost digits, or is about to overflow
ABOVE = 1 << 12  # powers that rounded exponents may be above the guess: so far off, a power errs by 2 %
SAMPLE = 2048  # rows of the memory that a largest exponent is guessed from
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
        """Return the losses of the anchors (b,), and keep their gradient (b, d), made on the way."""
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
    """Operands of one loss, the dtype of the products, and which rows of the memory are special."""

    def __init__(self, embeddings: Tensor, reference: Tensor, pairs: Pairs, view: View, tile: int | None) -> None:
        wide = accumulation_dtype(torch.promote_types(embeddings.dtype, reference.dtype))
        half = wide == torch.float32 and fast_products(reference)
        self.wide, self.low = wide, reference.dtype if half else wide
        self.embeddings, self.memory = embeddings.detach().to(wide), reference.detach()
        self.pairs, self.view = pairs, view
        if view.scale is not None and view.shift is not None:
            self.scale, self.shift = view.scale.to(wide), view.shift.to(wide)
        on_cpu = reference.device.type == "cpu"
        size = tile or max(64, (CPU_BLOCK if on_cpu else DEVICE_BLOCK) // max(embeddings.shape))
        self.size = min(size, max(1, len(reference)))
        # A part for each thread, which reads again what it has in its own cache.
        self.parts = min(torch.get_num_threads(), 1 + self.size // 256) if on_cpu and not half else 1
        self.buffers = Buffers(reference.device)
        self.hit, self.special = self._special()

    def _special(self) -> tuple[Tensor, Tensor]:
        """Return the rows that some anchor has for a positive, and those that are left out for some or all."""
        pairs = self.pairs
        hit = among(pairs.reference_labels, pairs.labels)
        out = torch.zeros_like(hit)
        if pairs.own_ids is not None and pairs.reference_ids is not None:
            out |= among(pairs.reference_ids, pairs.own_ids)
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
        guessed = form.sums in ("power", "circle") and form.pairs != "positive" and len(self.memory) > 0
        if guessed and not self.memory.is_cuda:
            # One pass less a tile. An accelerator would have to be asked how it went.
            guess = self._guess(form)
            running = self._sums(form, given, gradient, guess)
            most = min(LARGEST, len(self.memory) * ABOVE) if self._rough(form, guess) else LARGEST
            if bool(((running.second > LEAST) & (running.second < most)).all()):
                return running
        return self._sums(form, given, gradient, None)

    def _sums(self, form: Form, given: Tensor | None, gradient: bool, largest: Tensor | None) -> Running:
        """Return the sums of one walk; `largest` (b, 1) stands for the largest exponents where it is given."""
        running = Running.start(form, self.embeddings, self.parts if gradient else 0, largest)
        for rows, seen_cd, x, near in self._tiles(form, self._rough(form, largest), largest):
            if form.sums == "margin" and not x.is_cuda:  # an accelerator would have to be asked how many
                seen_cd, x = over_margin(seen_cd, x)
            if form.sums == "best" and given is not None:
                self._below(x, given)
            weights = add_tile(running, form, x, near, given, rows, largest is not None)
            if running.grads is not None and form.sums != "best":
                if self.low == self.wide:
                    add_product(running.grads, weights, seen_cd.to(self.wide))
                else:
                    running.grads += product(weights.to(self.low), seen_cd.to(self.low))
            del x, near, weights
        if running.grads is not None:
            running.grads = running.grads.sum(0)
        if gradient and form.sums == "best":
            self._gather(running)
        return running

    def _rough(self, form: Form, largest: Tensor | None) -> bool:
        """Return whether a CPU may round the values of a tile to the memory's dtype, which is twice as fast.

        Only where they are small when they matter: what is over a margin, or an exponent near the largest one.
        """
        halves = self.low != self.wide and not self.memory.is_cuda
        small = form.sums == "margin" or (form.sums in ("power", "circle") and largest is not None)
        return halves and form.pairs != "positive" and small

    def _guess(self, form: Form) -> Tensor:
        """Return about the largest exponent of each anchor, (b, 1), exact in the dtype of the products."""
        ordinary = self._columns(form).logical_not_().nonzero().flatten()
        if not len(ordinary):
            return self.embeddings.new_zeros(len(self.embeddings), 1)
        some = self._seen(self.memory[ordinary[:: -(-len(ordinary) // SAMPLE)]])
        products = product(self.embeddings.to(self.low), some.to(self.low).mT)
        # Exponents grow, or those of a circle are convex: the largest one is at an end.
        ends = torch.cat(products.aminmax(dim=1, keepdim=True), 1).to(self.wide) * form.sign
        if form.sums == "circle":
            ends, _ = circle(form, ends.add_((form.u + form.v) / 2), None, None)
        else:
            ends = (ends + form.u) * rate_of(form)
        return ends.amax(1, keepdim=True).to(self.low).to(self.wide)

    def _gather(self, running: Running) -> None:
        """Make the weighted sums of single rows."""
        known = running.second != NO_ROW
        if len(self.memory):
            rows_bd = self._seen(self.memory[running.second.where(known, 0).flatten()]).to(self.wide)
            running.grads = rows_bd * known.to(self.wide)

    def _tiles(
        self, form: Form, rough: bool = False, largest: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """Yield rows (c,), the memory as it is seen (c, d), and the values of the form (b, c), less `largest`.

        The last are the factors of the pairs (b, c), where the form has some. All are overwritten by the next tile.
        """
        positive = form.pairs == "positive"
        scaled = form.sign * {"power": rate_of(form), "pull": form.factor}.get(form.sums, 1.0)
        offsets = {"margin": -form.u, "power": rate_of(form) * form.u, "circle": (form.u + form.v) / 2}
        offset = offsets.get(form.sums, 0.0)
        query, special = self.embeddings * scaled, self._columns(form)
        before = query.new_full((len(query), 1), offset) if offset else None
        if largest is not None and form.sums == "power":
            before = offset - largest
        if rough and form.sums == "circle" and largest is not None:
            before = (offset - value_at(form, largest)).to(self.low).to(self.wide)
        for start in range(0, len(self.hit) if positive else len(self.memory), self.size):
            stop = start + self.size
            if positive:
                rows = self.hit[start:stop]
                seen_cd = self._seen(self._taken(rows))
            else:
                seen_cd = self._seen(self.memory[start:stop])
                rows = torch.arange(start, start + len(seen_cd), device=seen_cd.device)
            x, near = self._values(query, seen_cd, before, rough, form.sums == "circle"), None
            if form.sums == "circle":
                if rough and before is not None:  # the largest one's value was taken off, for the rounding
                    x = self.buffers.matrix("values", x.mT.shape, self.wide).mT.copy_(x).add_(offset - before)
                # Written as the tile lies.
                out = None if x.is_cuda else self.buffers.matrix("more", x.mT.shape, self.wide).mT
                x, near = circle(form, x, largest, out)
            self._mask(form, x, rows, special if positive else special[start:stop])
            yield rows, seen_cd, x, near
            del x, near  # before the next tile is made

    def _values(self, query: Tensor, seen_cd: Tensor, before: Tensor | None, rough: bool, tall: bool) -> Tensor:
        """Return (b, c) products, plus `before` (b, 1); rough ones made as (c, b) where `tall`, others anyway."""
        if rough:  # rounded after the addition
            added = (query.new_zeros(1, 1) if before is None else before).to(self.low)
            low, seen_low = query.to(self.low), seen_cd.to(self.low)
            return torch.addmm(added.mT, seen_low, low.mT).mT if tall else torch.addmm(added, low, seen_low.mT)
        if seen_cd.is_cuda:
            x = product(query.to(self.low), seen_cd.to(self.low).mT)
            return x if before is None else x.add_(before)
        # Libraries for CPUs write tall products a third faster than wide ones.
        wide_cd, out = seen_cd.to(self.wide), self.buffers.matrix("values", (len(seen_cd), len(query)), self.wide)
        x = (
            torch.mm(wide_cd, query.mT, out=out)
            if before is None
            else torch.addmm(before.mT, wide_cd, query.mT, out=out)
        )
        return x.mT

    def _below(self, x: Tensor, given: Tensor) -> None:
        """Put the values of a tile (b, c) that are not less than `given` (b, 1) to -inf, or as low as numbers go."""
        if x.is_cuda:
            x.masked_fill_(x >= given, -torch.inf)
        else:  # libraries for CPUs apply a mask of numbers ten times as fast as one of truths
            over = torch.ge(x, given, out=self.buffers.matrix("more", x.mT.shape, self.wide).mT)
            x.add_(over, alpha=torch.finfo(x.dtype).min)

    def _seen(self, memory_cd: Tensor) -> Tensor:
        """Return rows of the memory as the view shows them: as they are, or a buffer of the wide dtype."""
        scale, norms = self.view.scale is not None, self.view.renormalise
        if not scale and not norms:
            # The bits of a product on a CPU depend on whether an operand begins at a multiple of 64 bytes.
            return memory_cd if memory_cd.is_cuda or memory_cd.data_ptr() % 64 == 0 else memory_cd.clone()
        out = self.buffers.matrix("seen", memory_cd.shape, self.wide)
        seen = torch.addcmul(self.shift, memory_cd, self.scale, out=out) if scale else out.copy_(memory_cd)
        if norms:  # a product is half as dear as a quotient
            seen.mul_(torch.linalg.vector_norm(seen, dim=1, keepdim=True).clamp_(min=TINY).reciprocal_())
        return seen

    def _taken(self, rows: Tensor) -> Tensor:
        """Return single rows of the memory (c, d), in the buffer that `_seen` writes to where that has their dtype."""
        out = self.buffers.matrix("seen", (len(rows), self.memory.shape[1]), self.memory.dtype)
        return torch.index_select(self.memory, 0, rows, out=out)

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
        tall = x.stride(0) == 1  # a mask that lies in memory as its tile does is applied much faster
        if form.pairs == "positive":
            x.masked_fill_(left_out(self.pairs, form.pairs, rows, tall), -torch.inf)
            return
        places = special.nonzero().flatten()
        if len(places) * FEW < len(rows):
            if len(places):
                out = left_out(self.pairs, form.pairs, rows[places], tall)
                x[:, places] = x[:, places].masked_fill_(out, -torch.inf)
        else:
            x.masked_fill_(left_out(self.pairs, form.pairs, rows, tall), -torch.inf)

    def gradient(self, end: End, positives: Running, negatives: Running) -> Tensor:
        """Return the gradients of the anchors' losses, (b, d)."""
        assert positives.grads is not None
        assert negatives.grads is not None
        return torch.addcmul(end.positive * positives.grads, end.negative, negatives.grads).contiguous()

    def reference_gradient(self, plan: Plan, positives: Running, negatives: Running, end: End, given: Tensor) -> Tensor:
        """Return the gradient of the memory, (m, d); `given` (b, 1) are the gradients of the anchors' losses."""
        total = torch.zeros_like(self.memory, dtype=self.wide)
        for form, walk, factor, other in (
            (plan.positives, positives, end.positive, log_of(negatives) if plan.positives.sums == "pull" else None),
            (plan.negatives, negatives, end.negative, None),
        ):
            sides = (self.embeddings * (factor * given)).to(self.low)
            for rows, _, x, near in self._tiles(form):
                weights = weights_at_end(form, x, near, walk.first, walk.second, other, rows)
                total[rows] += product(weights.to(self.low).mT, sides)
        return total
