"""The rank of every target among the whole catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longview.data.batches import HistoryBatches, jagged_rows
from longview.data.dataset import PreparedData
from longview.data.schema import Inputs, Schema
from longview.data.splits import EvaluationSet
from longview.errors import InputError, LongviewError
from longview.models.baselines.log import training_counts
from longview.models.interface import Recommender, VectorRecommender
from longview.ops.topk import select_topk

Rows = npt.NDArray[np.int64]

CPU_SCORES = 1 << 22  # scores held at a time
DEVICE_SCORES = 1 << 26


@dataclass(frozen=True)
class Ranks:
    """One row for each evaluated user, in the order of the evaluation set.

    `users` (n,) int64; `rank` (n,) float64, 1 is best, infinite for a miss by definition (a cold target);
    `cold` (n,) bool: the target has no training event; `history` (n,) int64: events before the target;
    `lists` (n, k) int64: the k items recommended, −1 where there are fewer, or None when not asked for.
    """

    users: Rows
    rank: npt.NDArray[np.float64]
    cold: npt.NDArray[np.bool_]
    history: Rows
    lists: Rows | None = None

    def __len__(self) -> int:
        return len(self.users)


def rank_targets(
    model: Recommender,
    data: PreparedData,
    chosen: EvaluationSet,
    *,
    device: torch.device | str | None = None,
    exclude_seen: bool = True,
    list_length: int = 0,
    cold_is_miss: bool = True,
) -> Ranks:
    """Rank each user's target among all items of the catalogue.

    rank = 1 + (items that score higher) + half of (other items that score the same): the mean rank over all
    orders of the ties, so a model that scores everything alike gets no credit.

    Args:
        model: anything with vectors or scores; it must be on `device`. A module is put in eval mode meanwhile.
        data, chosen: the data set and which of its targets to rank (`data.split.validation` or `.test`).
        device: where batches go; by default where the model's parameters are.
        exclude_seen: leave out items of the user's whole history (also what lies beyond the model's
            `max_length`). The target itself always stays, also where it repeats an earlier item.
        list_length: also return the top `list_length` items of each user.
        cold_is_miss: a target without any training event counts as a miss whatever its score.

    Raises:
        InputError: the evaluation set is empty.
        LongviewError: the model's scores are not numbers.
    """
    if not len(chosen):
        raise InputError(
            f"{data.meta.name}: this split has no user to evaluate ({data.split.describe()}); "
            "prepare the data with another split or with fewer filters"
        )
    device = torch.device(device) if device is not None else device_of(model)
    targets = data.items[chosen.target].astype(np.int64)
    ranks, lists, broken = [], [], []
    with torch.no_grad(), evaluation_mode(model):
        for rows, scores in _scores(model, data, chosen, device):
            broken.append(scores.amax(1).isnan().any())  # the maximum of a row with a NaN is NaN
            wanted = torch.from_numpy(targets[rows]).to(device)[:, None]
            if exclude_seen:
                seen = _seen_cells(data, chosen, rows, targets, scores.shape[1])
                scores.view(-1)[torch.from_numpy(seen).to(device)] = -torch.inf
            ranks.append(_ranks(scores, wanted))
            if list_length:
                lists.append(select_topk(scores, min(list_length, scores.shape[1]))[1])
    rank = torch.cat(ranks).cpu().numpy()  # one synchronisation for all users
    if bool(torch.stack(broken).any()):
        raise LongviewError("the model's scores are not numbers (NaN): training diverged; lower the learning rate")
    cold = training_counts(data)[targets] == 0
    if cold_is_miss:
        rank[cold] = np.inf
    return Ranks(
        users=chosen.users,
        rank=rank,
        cold=cold,
        history=chosen.target - chosen.start,
        lists=torch.cat(lists).cpu().numpy() if lists else None,
    )


def device_of(model: Recommender) -> torch.device:
    """Return the device of the first parameter of `model`, or the CPU for one without parameters."""
    if isinstance(model, torch.nn.Module):
        for parameter in model.parameters():
            return parameter.device
    return torch.device("cpu")


@contextmanager
def evaluation_mode(model: Recommender) -> Iterator[None]:
    """Switch a module to eval mode for the block, and back to what it was."""
    if not isinstance(model, torch.nn.Module) or not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def inputs_of(model: object, data: PreparedData) -> Inputs | None:
    """Return the strengths and context of `data` that `model` reads, or None for one that reads items and times."""
    schema = getattr(model, "schema", None)
    return Inputs.of(schema, data) if isinstance(schema, Schema) else None


def _scores(
    model: Recommender, data: PreparedData, chosen: EvaluationSet, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of users and their (users, num_items) float32 scores, which the caller may overwrite."""
    held = CPU_SCORES if device.type == "cpu" else DEVICE_SCORES
    height = max(1, held // data.num_items)
    if isinstance(model, VectorRecommender):
        items = model.item_vectors().float()
        for rows, batch in HistoryBatches(data, chosen, max_length=model.max_length, inputs=inputs_of(model, data)):
            vectors = model.user_vectors(batch.to(device)).float()
            for begin in range(0, vectors.shape[0], height):
                block = vectors[begin : begin + height]
                start = rows.start + begin
                yield slice(start, start + block.shape[0]), block @ items.T
        return
    for begin in range(0, len(chosen), height):
        part = EvaluationSet(
            *(column[begin : begin + height] for column in (chosen.users, chosen.start, chosen.target))
        )
        for rows, batch in HistoryBatches(data, part, max_length=None):
            scores = model.score(batch.to(device)).float().clone(memory_format=torch.contiguous_format)
            yield slice(begin + rows.start, begin + rows.stop), scores


def _seen_cells(data: PreparedData, chosen: EvaluationSet, rows: slice, targets: Rows, num_items: int) -> Rows:
    """Return the flat cells of a (users, num_items) block that hold seen items other than the target."""
    start, end = chosen.start[rows], chosen.target[rows]
    events, _ = jagged_rows(start, end)
    user: Rows = np.repeat(np.arange(len(start)), end - start)
    seen: Rows = data.items[events].astype(np.int64)
    others = seen != targets[rows][user]
    cells: Rows = user[others] * num_items + seen[others]
    return cells


def _ranks(scores: Tensor, wanted: Tensor) -> Tensor:
    target = scores.gather(1, wanted)
    better = (scores > target).sum(1, dtype=torch.int32)
    tied = (scores == target).sum(1, dtype=torch.int32) - 1
    return 1 + better + 0.5 * tied.double()
