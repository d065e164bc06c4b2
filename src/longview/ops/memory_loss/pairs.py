"""Which pairs of anchors and rows of the memory take part, and how they are compared."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
