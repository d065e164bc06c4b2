"""The tiles of a memory loss in plain torch: similarities of all anchors with some rows, masked, as a form wants them.

Shapes: b anchors, m rows of the memory, d width, c rows of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from longview.ops.memory_loss.buffers import Buffers
from longview.ops.memory_loss.forms import Form
from longview.ops.memory_loss.pairs import Pairs, View, among, left_out
from longview.ops.memory_loss.path import fast_products
from longview.ops.memory_loss.reference import TINY
from longview.ops.memory_loss.tiles import circle, rate_of, value_at
from longview.ops.softmax_loss.numerics import accumulation_dtype, product

# Similarities a tile: 4 MB of float32. Less stays nearer to its core, but threads wait for each other once a pass.
CPU_BLOCK = 1 << 20
DEVICE_BLOCK = 1 << 24
FEW = 4  # a tile's special columns are masked apart where they are less than one in FEW


class TiledMemory:
    """A batch and a memory, the dtype of their products, and which rows of the memory are special.

    Attributes:
        embeddings: (b, d) in `wide`. memory: (m, d) as stored.
        wide, low: dtypes of sums, and of the operands of products.
        hit: rows that some anchor has for a positive.
        parts: in how many parts a product is made.
    """

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

    def rough(self, form: Form, largest: Tensor | None) -> bool:
        """Return whether a CPU may round the values of a tile to the memory's dtype, which is twice as fast.

        Only where they are small when they matter: what is over a margin, or an exponent near the largest one.
        """
        halves = self.low != self.wide and not self.memory.is_cuda
        small = form.sums == "margin" or (form.sums in ("power", "circle") and largest is not None)
        return halves and form.pairs != "positive" and small

    def tiles(
        self, form: Form, rough: bool = False, largest: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """Yield rows (c,), the memory as it is seen (c, d), and the values of the form (b, c), less `largest`.

        The last are the factors of the pairs (b, c), where the form has some. All are overwritten by the next tile.
        """
        positive = form.pairs == "positive"
        scaled = form.sign * {"power": rate_of(form), "pull": form.factor}.get(form.sums, 1.0)
        offsets = {"margin": -form.u, "power": rate_of(form) * form.u, "circle": (form.u + form.v) / 2}
        offset = offsets.get(form.sums, 0.0)
        query, special = self.embeddings * scaled, self.columns(form)
        before = query.new_full((len(query), 1), offset) if offset else None
        if largest is not None and form.sums == "power":
            before = offset - largest
        if rough and form.sums == "circle" and largest is not None:
            before = (offset - value_at(form, largest)).to(self.low).to(self.wide)
        for start in range(0, len(self.hit) if positive else len(self.memory), self.size):
            stop = start + self.size
            if positive:
                rows = self.hit[start:stop]
                seen_cd = self.seen(self._taken(rows))
            else:
                seen_cd = self.seen(self.memory[start:stop])
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

    def seen(self, memory_cd: Tensor) -> Tensor:
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

    def columns(self, form: Form) -> Tensor:
        """Return (m,) which columns a walk has to look at pair by pair; the positives' walk looks at all."""
        if form.pairs == "positive":
            return self.special
        special = self.special.clone()
        if form.pairs == "negative":
            special[self.hit] = True
        return special

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

    def _taken(self, rows: Tensor) -> Tensor:
        """Return single rows of the memory (c, d), in the buffer that `seen` writes to where that has their dtype."""
        out = self.buffers.matrix("seen", (len(rows), self.memory.shape[1]), self.memory.dtype)
        return torch.index_select(self.memory, 0, rows, out=out)

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
