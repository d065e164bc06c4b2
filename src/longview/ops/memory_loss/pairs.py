"""Which pairs of anchors and rows of the memory take part, and how they are compared."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["positive", "negative", "all"]
LAST_BITS = (1 << 16) - 1


class Pairs(NamedTuple):
    """Labels of both sides, and what leaves a pair out.

    labels: (b,) int64.
    reference_labels: (m,) int64.
    own_ids, reference_ids: (b,), (m,) int64, both or neither: a pair of equal sample ids is left out.
    own_positions: (b,) int64: row of the memory that is the anchor itself, negative for none.
    reference_mask: (m,) bool: rows that take part.
    """

    labels: Tensor
    reference_labels: Tensor
    own_ids: Tensor | None = None
    reference_ids: Tensor | None = None
    own_positions: Tensor | None = None
    reference_mask: Tensor | None = None


class View(NamedTuple):
    """How the memory is seen: rows m * scale + shift, divided by their norms where `renormalise`.

    scale, shift: (d,) both or neither.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    renormalise: bool = False


def among(keys: Tensor, wanted: Tensor) -> Tensor:
    """Return which of `keys` (m,) are in `wanted` (b,)."""
    if keys is wanted:  # a batch against itself
        return torch.ones_like(keys, dtype=torch.bool)
    if keys.is_cuda:
        return _found(keys, wanted)
    # Few keys have the last bits of a wanted one, and only these are searched for: a look into a table is cheaper.
    table = torch.zeros(LAST_BITS + 1, dtype=torch.bool, device=keys.device)
    table[wanted & LAST_BITS] = True
    found = table[keys & LAST_BITS]
    maybe = found.nonzero().flatten()
    found[maybe] = _found(keys[maybe], wanted)
    return found


def _found(keys: Tensor, wanted: Tensor) -> Tensor:
    """Return the same by a search alone."""
    ordered = wanted.sort().values  # a search, where isin would sort all keys
    place = torch.searchsorted(ordered, keys).clamp_(max=len(ordered) - 1)
    return ordered[place] == keys


def left_out(pairs: Pairs, kind: Kind, rows: Tensor, tall: bool) -> Tensor:
    """Return which pairs of the anchors and `rows` (c,) are not of the kind, (b, c), made as (c, b) where `tall`."""

    def grid(own_b: Tensor, other_c: Tensor) -> tuple[Tensor, Tensor]:
        return (own_b[None, :], other_c[:, None]) if tall else (own_b[:, None], other_c[None, :])

    own, other = grid(pairs.labels, pairs.reference_labels[rows])
    out = own != other if kind == "positive" else own == other
    if kind == "all":
        out.zero_()
    if pairs.own_ids is not None and pairs.reference_ids is not None:
        out |= torch.eq(*grid(pairs.own_ids, pairs.reference_ids[rows]))
    if pairs.own_positions is not None:
        out |= torch.eq(*grid(pairs.own_positions, rows))
    if pairs.reference_mask is not None:
        out |= grid(pairs.labels, ~pairs.reference_mask[rows])[1]
    return out.mT if tall else out
