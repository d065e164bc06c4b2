"""What a walk sums over one tile of similarities, in plain torch; the forms are those of `triton_sums`.

Shapes: b anchors, c rows of the memory in a tile, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from longview.ops.memory_loss.forms import Form
from longview.ops.softmax_loss.numerics import LOG2_E

NO_ROW = 2**31 - 1
SPARSE = 2  # a tile's columns over the margin are taken out where they are less than one in SPARSE


@dataclass
class Running:
    """The sums of a walk so far.

    first, second, third: (b, 1), as the form says; the largest exponent is one of 2 (`rate_of`). grads: (b, d), the
    rows of the memory summed with the weights, None where nobody asks for a gradient; in parts (parts, b, d) until the
    walk is over.
    """

    first: Tensor
    second: Tensor
    third: Tensor
    grads: Tensor | None

    @classmethod
    def start(cls, form: Form, like: Tensor, parts: int, largest: Tensor | None = None) -> Running:
        """Return the sums of nothing for queries `like` (b, d).

        `parts` of a gradient, 0 for none; `largest` (b, 1) stands for the largest exponents.
        """
        first, second, third = (like.new_zeros(len(like), 1) for _ in range(3))
        if form.sums == "best":
            first, second = first - torch.inf, torch.full_like(first, NO_ROW, dtype=torch.int64)
        elif form.sums in ("power", "circle"):
            first = first - torch.inf if largest is None else largest
        # Libraries for CPUs add the product of two row-major matrices a tenth faster to a column-major one.
        grads = like.new_zeros(parts, like.shape[1], len(like)).mT
        return cls(first, second, third, grads if parts else None)


def add_product(grads: Tensor, weights: Tensor, seen_cd: Tensor) -> None:
    """Add the rows of a tile (c, d) summed with weights (b, c), an equal share of the rows to each of (parts, b, d)."""
    parts = len(grads)
    even = len(seen_cd) // parts * parts
    if even:
        seen, of_seen = (t[:even].view(parts, -1, t.shape[1]) for t in (seen_cd, weights.mT))
        grads.mT.baddbmm_(seen.mT, of_seen)
    if even < len(seen_cd):
        grads[0].addmm_(weights[:, even:], seen_cd[even:])


def over_margin(seen_cd: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows (c, d) and columns (b, c) of a tile without those where no pair is over its margin.

    They add nothing, and a trained encoder has few others. All are returned where these are many.
    """
    over = (~(x.amax(0) <= 0)).nonzero().flatten()  # NaN is over: it is seen
    if len(over) * SPARSE >= len(seen_cd):
        return seen_cd, x
    return seen_cd[over], x.mT[over].mT


def rate_of(form: Form) -> float:
    """Return the factor of exponents of 2: libraries for CPUs raise 2 three times as fast as e."""
    return form.factor * LOG2_E


def circle(form: Form, x: Tensor, largest: Tensor | None, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return exponents of a circle (b, c), less `largest`, in `out`, and the factors of its pairs, in place of `x`.

    With h = (v - u) / 2 and t = s + (u + v) / 2, which is `x`, no less than h, a pair's factor is t - h, and its
    exponent factor · (t - h) (t + h): one pass, and 0 where the factor is.
    """
    half, rate = (form.v - form.u) / 2, rate_of(form)
    x = x.clamp_(min=half)
    less = x.new_full((len(x), 1), -rate * half * half)
    exponents = torch.addcmul(less if largest is None else less - largest, x, x, value=rate, out=out)
    return exponents, x.sub_(half)


def value_at(form: Form, exponents: Tensor) -> Tensor:
    """Return the values t ≥ 0 of a circle that have these exponents."""
    half = (form.v - form.u) / 2
    return (exponents / rate_of(form) + half * half).clamp(min=0).sqrt()


def add_tile(
    running: Running,
    form: Form,
    x: Tensor,
    near: Tensor | None,
    given: Tensor | None,
    rows: Tensor,
    fixed: bool,
) -> Tensor:
    """Add a tile to the sums, and return the weights of its pairs (b, c), which may be `x` itself.

    Args:
        running: changed in place, but for its gradients, which are only brought to the new scale.
        form: what is summed.
        x: (b, c) values of the form, less `running.first` where that is fixed; what does not count is -inf.
        near: (b, c) factors of the pairs' weights, where the form has some.
        given: (b, 1) sums of the other walk, where a pull looks at them.
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
        if x.is_cuda:
            value, place = x.max(1, keepdim=True)
            better = ~(value <= running.first)  # NaN is better: it is seen
            running.first = value.where(better, running.first)
            running.second = rows[place].where(better, running.second)
        else:  # few anchors find a better one in a later tile, and the greatest value alone is found much faster
            least = running.first.clamp(min=torch.finfo(x.dtype).min / 2)  # what is as low as numbers go is no value
            better = (~(x.amax(1, keepdim=True) <= least)).flatten().nonzero().flatten()
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
    if not fixed:
        higher = torch.maximum(running.first, x.amax(1, keepdim=True))
        # Where nothing counted so far, 0 stands for the largest exponent.
        shift = higher.where(higher != -torch.inf, 0.0)
        shrink = (running.first - shift).exp2()
        running.first = higher
        running.second *= shrink
        if running.grads is not None:
            running.grads *= shrink
        x = x.sub_(shift)
    weights = x.exp2_()
    # Libraries for CPUs sum a wide copy: of half a tile at a time, where it is in two bytes.
    for part in weights.chunk(1 if x.is_cuda or x.dtype == running.second.dtype else 2, 1):
        running.second += part.sum(1, keepdim=True, dtype=running.second.dtype)
    return weights if near is None else weights.mul_(near)


def weights_at_end(
    form: Form,
    x: Tensor,
    near: Tensor | None,
    largest: Tensor,
    best: Tensor,
    given: Tensor | None,
    rows: Tensor,
) -> Tensor:
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
    weights = x.sub_(largest.where(largest != -torch.inf, 0.0)).exp2_()
    return weights if near is None else weights.mul_(near)
