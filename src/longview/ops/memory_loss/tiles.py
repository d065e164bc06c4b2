"""What a walk sums over one tile of similarities, in plain torch; the forms are those of `triton_sums`.

Shapes: b anchors, c rows of the memory in a tile, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from longview.ops.memory_loss.forms import Form

NO_ROW = 2**31 - 1
SPARSE = 2  # a tile's columns over the margin are taken out where they are less than one in SPARSE


@dataclass
class Running:
    """The sums of a walk so far.

    first, second, third: (b, 1), as the form says. grads: (b, d), the rows of the memory summed with the weights,
    None where nobody asks for a gradient.
    """

    first: Tensor
    second: Tensor
    third: Tensor
    grads: Tensor | None

    @classmethod
    def start(cls, form: Form, like: Tensor, gradient: bool, largest: Tensor | None = None) -> Running:
        """Return the sums of nothing for queries `like` (b, d); `largest` (b, 1) stands for the largest exponents."""
        first, second, third = (like.new_zeros(len(like), 1) for _ in range(3))
        if form.sums == "best":
            first, second = first - torch.inf, torch.full_like(first, NO_ROW, dtype=torch.int64)
        elif form.sums in ("power", "circle"):
            first = first - torch.inf if largest is None else largest
        return cls(first, second, third, torch.zeros_like(like) if gradient else None)


def over_margin(seen_cd: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows (c, d) and columns (b, c) of a tile without those where no pair is over its margin.

    They add nothing, and a trained encoder has few others. All are returned where these are many.
    """
    over = (~(x.amax(0) <= 0)).nonzero().flatten()  # NaN is over: it is seen
    if len(over) * SPARSE >= len(seen_cd):
        return seen_cd, x
    return seen_cd[over], x.mT[over].mT


def add_tile(running: Running, form: Form, x: Tensor, given: Tensor | None, rows: Tensor, fixed: bool) -> Tensor:
    """Add a tile to the sums, and return the weights of its pairs (b, c), which may be `x` itself.

    Args:
        running: changed in place, but for its gradients, which are only brought to the new scale.
        form: what is summed.
        x: (b, c) values of the form, less `running.first` where that is fixed; what does not count is -inf.
        given: (b, 1) sums of the other walk, where the form looks at them.
        rows: (c,) the rows of the memory.
        fixed: `running.first` stands for the largest exponent, whatever the tile has.
    """
    if form.sums == "margin":
        x = x.to(running.first.dtype).clamp_(min=0)
        running.first += x.sum(1, keepdim=True)
        weights = x.sign_()
        running.second += weights.sum(1, keepdim=True)
        return weights
    if form.sums == "best":
        if given is not None:
            x.masked_fill_(x >= given, -torch.inf)
        if x.is_cuda:
            value, place = x.max(1, keepdim=True)
            better = ~(value <= running.first)  # NaN is better: it is seen
            running.first = value.where(better, running.first)
            running.second = rows[place].where(better, running.second)
        else:  # few anchors find a better one in a later tile, and the greatest value alone is found much faster
            better = (~(x.amax(1, keepdim=True) <= running.first)).flatten().nonzero().flatten()
            running.first[better], place = x[better].max(1, keepdim=True)
            running.second[better] = rows[place]
        return x
    if form.sums == "pull":
        assert given is not None
        apart = given - x
        kept = x.isfinite() | x.isnan()
        running.first += functional.softplus(apart).where(kept, 0.0).sum(1, keepdim=True)
        weights = apart.sigmoid().where(kept, 0.0)
        running.second += weights.sum(1, keepdim=True)
        running.third += kept.sum(1, keepdim=True)
        return weights
    if form.sums == "mean":
        kept = x != -torch.inf
        running.first += x.where(kept, 0.0).sum(1, keepdim=True)
        running.second += kept.sum(1, keepdim=True)
        return kept.to(x.dtype)
    near = None
    if form.sums == "circle":
        x, near = _circle(form, x)
    if not fixed:
        higher = torch.maximum(running.first, x.amax(1, keepdim=True))
        # Where nothing counted so far, 0 stands for the largest exponent.
        shift = higher.where(higher != -torch.inf, 0.0)
        shrink = (running.first - shift).exp()
        running.first = higher
        running.second *= shrink
        if running.grads is not None:
            running.grads *= shrink
        x = x.sub_(shift)
    weights = x.exp_()
    running.second += weights.sum(1, keepdim=True, dtype=running.second.dtype)
    return weights if near is None else weights.mul_(near)


def weights_at_end(form: Form, x: Tensor, largest: Tensor, best: Tensor, given: Tensor | None, rows: Tensor) -> Tensor:
    """Return the weights of a tile as `add_tile`, from the sums of the whole memory (`first`, `second`)."""
    if form.sums == "margin":
        return x.clamp_(min=0).sign_()
    if form.sums == "best":
        return (rows == best).to(x.dtype)
    if form.sums == "pull":
        assert given is not None
        return (given - x).sigmoid().where(x != -torch.inf, 0.0)
    if form.sums == "mean":
        return (x != -torch.inf).to(x.dtype)
    near = None
    if form.sums == "circle":
        x, near = _circle(form, x)
    weights = x.sub_(largest.where(largest != -torch.inf, 0.0)).exp_()
    return weights if near is None else weights.mul_(near)


def _circle(form: Form, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return exponents, in place of `x`, and weights of pairs; -inf stays -inf, with weight 0."""
    out = x == -torch.inf
    near = (x + form.u).clamp_(min=0)
    return x.add_(form.v).mul_(near).mul_(form.factor).masked_fill_(out, -torch.inf), near
