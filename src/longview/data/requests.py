"""Ranking requests: a few consecutive events of a user as the candidates of one request, over one shared history.

The log says what people did with what they were shown, so its events are the impressions. A user's events of a split
are cut into requests of `size` candidates. The history of a request is what happened strictly before its first
candidate: events of the same second are left out of it, as they may be of the same page, and candidates see neither
each other nor what came of any of them. All candidates of a request carry its time, that of the first.

* `train`: all events of the training rows, the first of a user included (their history is empty).
* `leave-last-out`: the one validation or test event of each user.
* `global-time`: every event of the validation or test period; earlier events of the period are history by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from longview.data.batches import JaggedBatch, context_of, jagged_rows, strengths_of
from longview.data.dataset import PreparedData
from longview.data.groups import batch_groups, check_size
from longview.data.labels import Labels, TaskConfig, labels_of, missing_labels
from longview.data.schema import Inputs
from longview.data.splits import count_until
from longview.errors import InputError

Rows = npt.NDArray[np.int64]
Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Requests:
    """All arrays (n,) int64. The history of a request is event rows `start` to `history_end`, which may be none; its
    candidates are rows `first` to `last` (exclusive)."""

    users: Rows
    start: Rows
    history_end: Rows
    first: Rows
    last: Rows

    def __len__(self) -> int:
        return len(self.users)

    @property
    def num_candidates(self) -> int:
        return int((self.last - self.first).sum())

    @classmethod
    def of(cls, data: PreparedData, part: Part, size: int, shift: Rows | None = None) -> Requests:
        """Return the requests of one part of the split of `data`, at most `size` candidates each, in user order.

        With `shift` (num_users,), 0 to size − 1, the first request of a user is so much shorter.

        Raises:
            InputError: the part has no event.
        """
        begin, end = _part(data, part)
        users = np.flatnonzero(end > begin)
        begin, end = begin[users], end[users]
        cut = begin if shift is None else begin - shift[users]
        count = -(-(end - cut) // size)
        place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        first = np.repeat(cut, count) + place * size
        last = np.minimum(first + size, np.repeat(end, count))
        first = np.maximum(first, np.repeat(begin, count))
        owner = np.repeat(users, count)
        if not len(owner):
            raise InputError(f"{data.meta.name}: no event to rank in {part} ({data.split.describe()})")
        start = data.offsets[owner]
        return cls(owner, start, _before(data.timestamps, start, first), first, last)


@dataclass(frozen=True)
class Candidates:
    """Every candidate of some requests, in their order: `request` (n,) its number, `items` (n,), `labels` (n, tasks).

    Sampled candidates come after the events of their request.
    """

    request: Rows
    items: Rows
    labels: Labels

    def __len__(self) -> int:
        return len(self.items)


def candidates_of(
    data: PreparedData, requests: Requests, tasks: Sequence[TaskConfig], sampled: Rows | None = None
) -> Candidates:
    """Return the candidates of `requests`, with the items `sampled` (n, k) behind those of each.

    Nothing happened to a sampled candidate: none of its actions, and its amounts are unknown.
    """
    lengths = requests.last - requests.first
    extra = 0 if sampled is None else sampled.shape[1]
    offsets = np.concatenate([[0], np.cumsum(lengths + extra)])
    real, _ = jagged_rows(offsets[:-1], offsets[:-1] + lengths)
    rows, _ = jagged_rows(requests.first, requests.last)
    items = np.empty(offsets[-1], np.int64)
    items[real] = data.items[rows]
    labels = np.tile(missing_labels(tasks), (len(items), 1))
    labels[real] = labels_of(tasks, data, rows)
    if sampled is not None:
        drawn, _ = jagged_rows(offsets[:-1] + lengths, offsets[1:])
        items[drawn] = sampled.reshape(-1)
    return Candidates(np.repeat(np.arange(len(requests)), lengths + extra), items, labels)


def request_batch(
    data: PreparedData,
    requests: Requests,
    candidates: Candidates,
    *,
    max_length: int,
    inputs: Inputs | None = None,
    next_items: int = 0,
) -> JaggedBatch:
    """Return `requests` as a batch of sequences `[newest max_length of the history | candidates]`.

    Candidates carry their item and the time of the request; no action, no strength. With `next_items` the newest so
    many history events of each sequence have the item that followed as their target, so that a pass over all requests
    of a user trains each of his events about once.
    """
    start = np.maximum(requests.start, requests.history_end - max_length)
    history = requests.history_end - start
    count = np.bincount(candidates.request, minlength=len(requests))
    offsets = np.concatenate([[0], np.cumsum(history + count)])
    past, _ = jagged_rows(offsets[:-1], offsets[:-1] + history)
    ahead, _ = jagged_rows(offsets[:-1] + history, offsets[1:])
    rows = np.full(offsets[-1], -1, np.int64)
    rows[past], _ = jagged_rows(start, requests.history_end)
    items = np.empty(offsets[-1], np.int64)
    items[past], items[ahead] = data.items[rows[past]], candidates.items
    targets = None
    if next_items:
        targets = np.full(offsets[-1], -1, np.int64)
        trained = rows[past] >= np.repeat(requests.history_end - next_items, history)
        targets[past[trained]] = data.items[rows[past[trained]] + 1]
    return JaggedBatch(
        items=torch.from_numpy(items),
        offsets=torch.from_numpy(offsets.astype(np.int64)),
        timestamps=_filled(data.timestamps, rows, past, ahead, np.repeat(requests.first, count)),
        actions=_filled(data.actions, rows, past, ahead, None),
        targets=None if targets is None else torch.from_numpy(targets),
        strengths=strengths_of(inputs, rows),
        context=context_of(inputs, data, requests.start),
        target_lengths=torch.from_numpy(count.astype(np.int64)),
        labels=torch.from_numpy(candidates.labels),
    )


def sample_items(data: PreparedData, requests: Requests, count: int, generator: np.random.Generator) -> Rows | None:
    """Return `count` items drawn uniformly for each request, (n, count), or None for 0; some may be taken later."""
    return generator.integers(data.num_items, size=(len(requests), count)) if count else None


class RequestBatches:
    """Training batches of requests; all that is random depends on (seed, epoch, step) alone, so that a run resumes.

    Where a user's events are cut into requests is drawn anew each epoch: an event is met at all distances from the
    history's end, and with histories that end at different events.

    Args:
        data: the data set; training rows are those of its split.
        tasks: what the labels say.
        size: candidates of a request, at most.
        sampled: candidates drawn beside them, to which nothing happened.
        max_length: longest history.
        batch_size, token_budget: requests, or tokens, a batch.
        next_items: also give histories their next items as targets (`request_batch`).
        inputs: strengths and context that the model reads.
    """

    def __init__(
        self,
        data: PreparedData,
        tasks: Sequence[TaskConfig],
        *,
        size: int,
        max_length: int,
        sampled: int = 0,
        batch_size: int | None = 128,
        token_budget: int | None = None,
        next_items: bool = False,
        inputs: Inputs | None = None,
        seed: int = 0,
    ) -> None:
        check_size(batch_size, token_budget)
        self.data, self.tasks, self.inputs, self.seed = data, tasks, inputs, seed
        self.max_length, self.batch_size, self.token_budget = max_length, batch_size, token_budget
        self.sampled, self.next_items = sampled, size if next_items else 0
        self.size = size
        Requests.of(data, "train", size)  # an empty part is refused at once

    def steps(self, epoch: int) -> int:
        """Return the number of batches of `epoch`."""
        return len(self._plan(epoch)[1])

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[JaggedBatch]:
        """Yield the batches of `epoch` from `first_step` on."""
        requests, groups = self._plan(epoch)
        for step, group in enumerate(groups[first_step:], first_step):
            yield self._batch(take(requests, group), np.random.default_rng((self.seed, epoch, step)))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return nothing: (epoch, step) says it all."""
        return {}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Nothing was kept."""

    def _batch(self, chosen: Requests, generator: np.random.Generator) -> JaggedBatch:
        drawn = sample_items(self.data, chosen, self.sampled, generator)
        candidates = candidates_of(self.data, chosen, self.tasks, drawn)
        return request_batch(
            self.data,
            chosen,
            candidates,
            max_length=self.max_length,
            inputs=self.inputs,
            next_items=self.next_items,
        )

    def _plan(self, epoch: int) -> tuple[Requests, list[Rows]]:
        generator = np.random.default_rng((self.seed, epoch))
        shift = generator.integers(self.size, size=self.data.num_users)
        requests = Requests.of(self.data, "train", self.size, shift)
        order = generator.permutation(len(requests))
        history = np.minimum(requests.history_end - requests.start, self.max_length)
        lengths = history + requests.last - requests.first + self.sampled
        return requests, batch_groups(order, lengths[order], self.batch_size, self.token_budget)


def take(requests: Requests, chosen: Rows | slice) -> Requests:
    """Return the requests numbered `chosen`."""
    return Requests(*(values[chosen] for values in vars(requests).values()))


def _part(data: PreparedData, part: Part) -> tuple[Rows, Rows]:
    """Return the rows [begin, end) of each user whose events are candidates of `part`."""
    begin, end, train_end = data.offsets[:-1], data.offsets[1:], data.split.train_end
    if part == "train":
        return begin, train_end
    if data.split.spec.kind == "global-time":
        assert data.timestamps is not None, "a time split has times"
        middle = begin + count_until(data.timestamps, data.offsets, data.split.spec.test_after)
        return (train_end, middle) if part == "validation" else (middle, end)
    chosen = data.split.validation if part == "validation" else data.split.test
    begin, end = np.zeros_like(begin), np.zeros_like(end)
    begin[chosen.users], end[chosen.users] = chosen.target, chosen.target + 1
    return begin, end


def _before(timestamps: npt.NDArray[np.int64] | None, start: Rows, first: Rows) -> Rows:
    """Return the first row from `start` on whose time is that of row `first`, each (n,): where the history ends."""
    if timestamps is None:
        return first
    low, high, time = start.copy(), first.copy(), timestamps[first]  # bisection of all at once: times are sorted
    while (low < high).any():
        middle = (low + high) // 2
        earlier = (low < high) & (timestamps[middle] < time)
        low, high = np.where(earlier, middle + 1, low), np.where(earlier | (low >= high), high, middle)
    return low


def _filled(
    values: npt.NDArray[Any] | None, rows: Rows, past: Rows, ahead: Rows, shown: Rows | None
) -> torch.Tensor | None:
    """Return a column of every token: that of its event in the history, of event `shown` at candidates, or 0."""
    if values is None:
        return None
    column = np.zeros(len(rows), np.int64)
    column[past] = values[rows[past]]
    if shown is not None:
        column[ahead] = values[shown]
    return torch.from_numpy(column)
