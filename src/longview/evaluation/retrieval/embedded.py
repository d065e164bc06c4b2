"""Images as an evaluation sees them: one vector, one label and one id each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from longview.data.images.samplers import class_numbers
from longview.errors import InputError

Similarity = Literal["cosine", "dot", "euclidean"]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Embedded:
    """Embedded images.

    Args:
        vectors: (n, d) floating point, finite.
        labels: (n,) class of each, whole numbers not below 0 or names.
        ids: (n,) identity of each image, by which a query is left out of its own gallery; by default the row
            number, which means that two sets without ids share no image unless they are the same object.

    Raises:
        InputError: lengths that differ, NaN or infinite vectors (the rows are named), labels that are missing.
    """

    vectors: Tensor
    labels: Sequence[Any] | npt.NDArray[Any]
    ids: Sequence[Any] | npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.vectors, Tensor):
            raise InputError(f"embeddings: expected a tensor (n, d), got {type(self.vectors).__name__}")
        if self.vectors.dim() != 2 or not self.vectors.is_floating_point():
            raise InputError(
                f"embeddings: expected (n, d) floating point, got {tuple(self.vectors.shape)} {self.vectors.dtype}"
            )
        if not len(self):
            raise InputError("embeddings: no image; at least one expected")
        for name, column in (("labels", self.labels), ("ids", self.ids)):
            if column is not None and len(column) != len(self):
                raise InputError(f"embeddings: {len(self)} vectors but {len(column)} {name}")
        broken = (~self.vectors.isfinite()).any(1).nonzero().squeeze(1).tolist()
        if broken:
            shown = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
            raise InputError(
                f"embeddings: NaN or infinite in {len(broken)} of {len(self)} rows (rows {shown}): training diverged, "
                "or those images are broken; no metric of them means anything"
            )

    def __len__(self) -> int:
        return self.vectors.shape[0]


def numbered(queries: Embedded, gallery: Embedded) -> tuple[Rows, Rows, list[str]]:
    """Return the class numbers of queries and of the gallery in one numbering, and the names of the classes.

    Raises:
        InputError: labels that are missing, negative or of two kinds; the message counts within queries or gallery.
    """
    if queries is gallery:
        numbers, names = class_numbers(queries.labels)
        return numbers, numbers, names
    try:
        numbers, names = class_numbers([*queries.labels, *gallery.labels])
    except InputError:
        for which, images in (("queries", queries), ("gallery", gallery)):  # whose it is, and counted there
            try:
                class_numbers(images.labels)
            except InputError as error:
                raise InputError(f"{which}: {error}") from None
        raise
    return numbers[: len(queries)], numbers[len(queries) :], names


def own_places(queries: Embedded, gallery: Embedded) -> tuple[Rows, Rows]:
    """Return the places of the gallery that hold the query's own image, by id: (places, offsets (q + 1,)).

    Where neither set has ids, a query is left out of its gallery only where both are one object.

    Raises:
        InputError: one set has ids and the other has none.
    """
    if (queries.ids is None) != (gallery.ids is None):
        raise InputError("give ids to both queries and gallery, or to neither: a query is left out by its id")
    if queries.ids is None or gallery.ids is None:
        count = len(queries) if queries is gallery else 0
        return np.arange(count), np.arange(len(queries) + 1) if count else np.zeros(len(queries) + 1, np.int64)
    _, numbers = np.unique(np.asarray([*queries.ids, *gallery.ids]), return_inverse=True)
    ours, theirs = numbers[: len(queries)], numbers[len(queries) :]
    order = theirs.argsort(kind="stable")
    low, high = (np.searchsorted(theirs[order], ours, side) for side in ("left", "right"))
    offsets = np.concatenate([[0], np.cumsum(high - low)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - low, high - low)
    return order[within].astype(np.int64), offsets.astype(np.int64)


def comparable(queries: Embedded, gallery: Embedded, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """Return float32 (or float64) query and gallery vectors whose inner product is the similarity.

    Euclidean similarity is −‖q − g‖², which orders as the distance does. It is computed from vectors whose common
    mean is taken away, which changes no distance and loses fewer digits.

    Raises:
        InputError: widths that differ.
    """
    q, g = queries.vectors, gallery.vectors
    if q.shape[1] != g.shape[1]:
        raise InputError(f"queries have dimension {q.shape[1]} but the gallery has {g.shape[1]}: embed both alike")
    kind = torch.float64 if torch.float64 in (q.dtype, g.dtype) else torch.float32
    q, g = q.detach().to(kind), g.detach().to(device=q.device, dtype=kind)
    if similarity == "cosine":
        return F.normalize(q, dim=1), F.normalize(g, dim=1)
    if similarity == "dot":
        return q, g
    centre = g.mean(0)
    q, g = q - centre, g - centre
    ones = torch.ones_like
    q_norm, g_norm = (x.square().sum(1, keepdim=True) for x in (q, g))
    return torch.cat([q, -q_norm, ones(q_norm)], 1), torch.cat([2 * g, ones(g_norm), -g_norm], 1)
