"""Rank the gallery for every query, a block of queries at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longview.evaluation.metrics.retrieval import average_precision_at_r, r_precision
from longview.evaluation.retrieval.embedded import Rows
from longview.ops.topk import select_topk

Values = npt.NDArray[np.float64]
Blocks = Iterator[tuple[slice, Tensor]]
"""Rows of queries, and their scores (rows, gallery), which the receiver may overwrite; higher is better."""

CPU_SCORES = 1 << 22
DEVICE_SCORES = 1 << 26


@dataclass(frozen=True)
class RetrievalRanks:
    """One row for each query, in the order of the queries.

    `first_rank` (q,) float64: rank of the first relevant image, infinite where the gallery holds none;
    `num_relevant` (q,) int64: R, images of the query's class in the gallery, without the query itself;
    `r_precision`, `map_at_r` (q,) float64; `tied` (q,) bool: the two best images score the same, so the first place
    is one of order; `neighbours` (q, k) int64: the k best places of the gallery, −1 where there are fewer, and
    `neighbour_scores` (q, k); `labels` (q,) class numbers into `names`, `gallery_labels` (n,) likewise.
    """

    first_rank: Values
    num_relevant: Rows
    r_precision: Values
    map_at_r: Values
    tied: npt.NDArray[np.bool_]
    neighbours: Rows
    neighbour_scores: npt.NDArray[np.float64]
    labels: Rows
    gallery_labels: Rows
    names: list[str]

    def __len__(self) -> int:
        return len(self.first_rank)

    @property
    def absent(self) -> npt.NDArray[np.bool_]:
        """(q,) true where the gallery has no other image of the query's class: a miss by definition."""
        missing: npt.NDArray[np.bool_] = self.num_relevant == 0
        return missing


def score_blocks(queries: Tensor, gallery: Tensor, block: int | None) -> Blocks:
    """Yield inner products of blocks of queries (q, d) with the whole gallery (n, d).

    At most max(`block`, n) scores are held; `block` is 4 M by default on a CPU, 64 M on a device.
    """
    block = block or (CPU_SCORES if queries.device.type == "cpu" else DEVICE_SCORES)
    height = max(1, block // gallery.shape[0])
    for begin in range(0, queries.shape[0], height):
        rows = slice(begin, min(begin + height, queries.shape[0]))
        yield rows, queries[rows] @ gallery.T


def rank_blocks(
    blocks: Blocks,
    labels: tuple[Rows, Rows],
    names: list[str],
    own: tuple[Rows, Rows],
    keep: int,
) -> RetrievalRanks:
    """Rank the gallery of each query by score; equal scores in the order of the gallery, the earlier place first.

    Args:
        blocks: scores, every query once and in order.
        labels: class numbers of queries (q,) and gallery (n,).
        names: of the classes.
        own: places of the gallery that are left out for each query, and offsets (q + 1,).
        keep: neighbours to keep, at most n.
    """
    ours, theirs = labels
    count = len(ours)
    sizes = np.bincount(theirs, minlength=len(names))
    num_relevant = sizes[ours] - _relevant_own(ours, theirs, own)
    first_rank, precision, average = (np.zeros(count) for _ in range(3))
    tied = np.zeros(count, dtype=bool)
    neighbours, neighbour_scores = np.full((count, keep), -1, np.int64), np.full((count, keep), -np.inf)
    for rows, scores in blocks:
        begin, end = own[1][rows.start], own[1][rows.stop]
        row = np.repeat(np.arange(rows.stop - rows.start), np.diff(own[1][rows.start : rows.stop + 1]))
        scores[torch.from_numpy(row), torch.from_numpy(own[0][begin:end])] = -torch.inf
        gallery = torch.from_numpy(theirs).to(scores.device)
        relevant = gallery == torch.from_numpy(ours[rows]).to(scores.device)[:, None]
        first_rank[rows] = _first_ranks(scores, relevant).cpu().numpy()
        wanted = num_relevant[rows]
        depth = min(scores.shape[1], max(keep, int(wanted.max()), 2))
        best, places = select_topk(scores, depth)
        right = (relevant.gather(1, places.clamp(min=0)) & (places >= 0)).cpu().numpy()
        precision[rows], average[rows] = r_precision(right, wanted), average_precision_at_r(right, wanted)
        tied[rows] = _tied(best)
        neighbours[rows], neighbour_scores[rows] = places[:, :keep].cpu().numpy(), best[:, :keep].cpu().numpy()
    return RetrievalRanks(
        first_rank=first_rank,
        num_relevant=num_relevant,
        r_precision=precision,
        map_at_r=average,
        tied=tied,
        neighbours=neighbours,
        neighbour_scores=neighbour_scores,
        labels=ours,
        gallery_labels=theirs,
        names=names,
    )


def _relevant_own(ours: Rows, theirs: Rows, own: tuple[Rows, Rows]) -> Rows:
    """Return for each query how many of its own places carry its label."""
    query = np.repeat(np.arange(len(ours)), np.diff(own[1]))
    same = theirs[own[0]] == ours[query]
    return np.bincount(query[same], minlength=len(ours))


def _first_ranks(scores: Tensor, relevant: Tensor) -> Tensor:
    """Return (rows,) float64: 1 + places that score higher than the best relevant one, or the same and lie earlier."""
    best, place = torch.where(relevant, scores, -torch.inf).max(1, keepdim=True)
    # max gives any of several equal places: the earliest is wanted
    place = (relevant & (scores == best)).to(torch.int8).argmax(1, keepdim=True)
    columns = torch.arange(scores.shape[1], device=scores.device)
    earlier = (scores == best) & (columns < place)
    rank = 1 + (scores > best).sum(1) + earlier.sum(1)
    return torch.where(best[:, 0] > -torch.inf, rank.double(), torch.inf)


def _tied(best: Tensor) -> npt.NDArray[np.bool_]:
    if best.shape[1] < 2:
        return np.zeros(best.shape[0], dtype=bool)
    equal: npt.NDArray[np.bool_] = ((best[:, 0] == best[:, 1]) & (best[:, 1] > -torch.inf)).cpu().numpy()
    return equal
