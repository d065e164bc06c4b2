"""k-reciprocal re-ranking: two images are near if the same images are near both.

Source: Zhong, Zheng, Cao, Li, Re-ranking Person Re-identification with k-reciprocal Encoding, arXiv 1701.08398;
equation numbers are the paper's. The distance d between two points is 1 − cosine, in which their code differs (squared
Euclidean distance divided by the largest of each column, which depends on the set).

All queries and gallery images together are the points. N(p, k) are the k points nearest to p, itself first and not
counted; equal distances in order of the points. Encodings are sparse: about k₁·k₂ values a point. Nothing of the size
points × points is held, and scores come a block of queries at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from longview.config import Config
from longview.evaluation.retrieval.ranking import CPU_SCORES, Blocks
from longview.ops.topk import blocked_topk

Rows = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

POSTINGS = 1 << 22  # pairs of an encoding's value and a gallery image with the same one, held at a time


class RerankConfig(Config):
    """k-reciprocal re-ranking; the defaults are the paper's."""

    k1: int = Field(default=20, ge=1, description="neighbours that must be mutual")
    k2: int = Field(default=6, ge=1, description="nearest points, itself included, whose encodings are averaged")
    weight: float = Field(default=0.3, ge=0, le=1, description="λ: share of the plain distance in the final one")

    @model_validator(mode="after")
    def _averages_neighbours(self) -> RerankConfig:
        if self.k2 > self.k1 + 1:
            raise ValueError(f"k2 may be at most k1 + 1 = {self.k1 + 1}, the neighbours that are known")
        return self

    def describe(self) -> str:
        """Return in words what orders the gallery."""
        return f"k-reciprocal re-ranking of cosine similarity (k1 {self.k1}, k2 {self.k2}, λ {self.weight:g})"


@dataclass(frozen=True)
class Encodings:
    """A sparse (points, points) matrix by row: columns and values of row p at offsets[p] : offsets[p + 1]."""

    columns: Rows
    values: Values
    offsets: Rows

    @property
    def rows(self) -> Rows:
        """The row of each value."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @classmethod
    def of(cls, rows: Rows, columns: Rows, values: Values, points: int) -> Encodings:
        """Return the matrix of entries in any order; entries of one cell are added."""
        cells, which = np.unique(rows * points + columns, return_inverse=True)
        offsets = np.searchsorted(cells // points, np.arange(points + 1))
        sums: Values = np.bincount(which, weights=values).astype(np.float64)
        return cls(cells % points, sums, offsets)


def reranked_blocks(queries: Tensor | None, gallery: Tensor, config: RerankConfig, block: int | None) -> Blocks:
    """Yield minus the final distance of blocks of queries to the whole gallery, (rows, n) float64 on the CPU.

    Args:
        queries: (q, d) of length 1, or None where each gallery image is the query.
        gallery: (n, d) of length 1.
        config: k1, k2 and λ; k1 is cut to the number of other points.
        block: scores held at a time, 4 M by default.
    """
    points = gallery if queries is None else torch.cat([queries, gallery])
    start = 0 if queries is None else queries.shape[0]  # the first point of the gallery
    count = gallery.shape[0] if queries is None else queries.shape[0]
    near = nearest(points, min(config.k1, points.shape[0] - 1))
    encodings = expand(encode(points, near, config.k1), near[:, : config.k2])
    lists = _by_column(encodings, start)
    height = max(1, (block or CPU_SCORES) // gallery.shape[0])
    for begin in range(0, count, height):
        rows = slice(begin, min(begin + height, count))
        plain = (1 - points[rows] @ gallery.T).double().cpu()
        jaccard = torch.from_numpy(jaccard_distances(encodings, lists, rows, gallery.shape[0]))
        yield rows, -((1 - config.weight) * jaccard + config.weight * plain)


def nearest(points: Tensor, k: int) -> Rows:
    """Return (points, k + 1): each point itself, then its k nearest others, nearest first."""
    own = torch.arange(points.shape[0], device=points.device)
    if k == 0:
        return own[:, None].cpu().numpy()
    offsets = torch.arange(points.shape[0] + 1, device=points.device)
    _, others = blocked_topk(points, points, k, exclude=(own, offsets))
    return torch.cat([own[:, None], others], dim=1).cpu().numpy()


def encode(points: Tensor, near: Rows, k1: int) -> Encodings:
    """Return V: e^(−d) over the expanded k-reciprocal neighbours of each point, each row summing to 1 (equations 3-7).

    R(p, k) are the points of N(p, k) that have p in theirs. R(c, k₁/2) of each c in R(p, k₁) joins it where more than
    two thirds of it are there already.
    """
    total = near.shape[0]
    full, half = reciprocal(near), reciprocal(near[:, : round(k1 / 2) + 1])
    sizes = np.diff(half.offsets)
    # Pairs (p, c), then triples (p, c, x) with x in R(c, k1/2).
    lengths = sizes[full.columns]
    pair = np.repeat(np.arange(len(full.columns)), lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    p, x = full.rows[pair], half.columns[half.offsets[full.columns[pair]] + within]
    inside = np.isin(p * total + x, full.rows * total + full.columns)
    shared = np.bincount(pair[inside], minlength=len(full.columns))
    joins = (3 * shared > 2 * lengths)[pair]
    cells = np.unique(np.concatenate([full.rows * total + full.columns, p[joins] * total + x[joins]]))
    rows, columns = cells // total, cells % total
    values = np.exp(-_distances(points, rows, columns))
    values /= np.bincount(rows, weights=values, minlength=total)[rows]
    return Encodings(columns, values, np.searchsorted(rows, np.arange(total + 1)))


def reciprocal(near: Rows) -> Encodings:
    """Return R(p, k) of every point as rows of a sparse matrix of ones; `near` (points, k + 1) as of `nearest`."""
    total, width = near.shape
    rows, columns = np.repeat(np.arange(total), width), near.reshape(-1)
    mutual = np.isin(rows * total + columns, columns * total + rows)
    return Encodings.of(rows[mutual], columns[mutual], np.ones(int(mutual.sum())), total)


def expand(encodings: Encodings, near: Rows) -> Encodings:
    """Return the mean of the encodings of each point's `near` (points, k2), itself among them (equation 11)."""
    total, width = near.shape
    if width == 1:
        return encodings
    who, source = np.repeat(np.arange(total), width), near.reshape(-1)
    lengths = np.diff(encodings.offsets)[source]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    cells = np.repeat(encodings.offsets[source], lengths) + within
    return Encodings.of(np.repeat(who, lengths), encodings.columns[cells], encodings.values[cells] / width, total)


def jaccard_distances(encodings: Encodings, lists: Encodings, rows: slice, gallery: int) -> Values:
    """Return (rows, gallery): 1 − Σ min / Σ max of the encodings of points `rows` and of the gallery (equation 10).

    Rows sum to 1, so Σ max = 2 − Σ min. `lists` holds for each column the gallery images that have it.
    """
    shared = np.zeros((rows.stop - rows.start) * gallery)
    begin, end = encodings.offsets[rows.start], encodings.offsets[rows.stop]
    columns, values = encodings.columns[begin:end], encodings.values[begin:end]
    row = np.repeat(np.arange(rows.stop - rows.start), np.diff(encodings.offsets[rows.start : rows.stop + 1]))
    lengths = np.diff(lists.offsets)[columns]
    edges = np.cumsum(lengths) // POSTINGS
    for part in np.split(np.arange(len(columns)), np.flatnonzero(np.diff(edges)) + 1):
        each = lengths[part]
        within = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
        posting = np.repeat(lists.offsets[columns[part]], each) + within
        cell = np.repeat(row[part], each) * gallery + lists.columns[posting]
        # One cell comes once a column, so several times in all.
        np.add.at(shared, cell, np.minimum(np.repeat(values[part], each), lists.values[posting]))
    least = shared.reshape(-1, gallery)
    distances: Values = 1 - least / (2 - least)
    return distances


def _by_column(encodings: Encodings, start: int) -> Encodings:
    """Return for each column the gallery images (points from `start` on, numbered from 0) that have a value there."""
    rows = encodings.rows
    kept = rows >= start
    columns, values, images = encodings.columns[kept], encodings.values[kept], rows[kept] - start
    order = columns.argsort(kind="stable")
    offsets = np.searchsorted(columns[order], np.arange(len(encodings.offsets)))
    return Encodings(images[order], values[order], offsets)


def _distances(points: Tensor, rows: Rows, columns: Rows) -> Values:
    """Return 1 − cosine of pairs of points, in blocks of pairs."""
    height = max(1, CPU_SCORES // points.shape[1])
    found = []
    for begin in range(0, len(rows), height):
        first, second = (torch.from_numpy(side[begin : begin + height]).to(points.device) for side in (rows, columns))
        found.append(1 - (points[first].double() * points[second].double()).sum(1))
    return torch.cat(found).cpu().numpy()
