"""Jagged batches from a prepared data set: nothing is padded, and the order resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longview.data.dataset import PreparedData
from longview.data.groups import batch_groups, check_size
from longview.data.schema import Inputs
from longview.data.share import Share
from longview.data.splits import EvaluationSet
from longview.data.stochastic_length import LoadBalancer, StochasticLength, StochasticLengthConfig
from longview.errors import InputError

Rows = npt.NDArray[np.int64]
Windows = Literal["latest", "random", "all", "shifted"]


@dataclass(frozen=True)
class JaggedBatch:
    """Sequences end to end: histories, each with the candidates of one request behind it where there are any.

    `items` (total,) int64 catalogue indices; `offsets` (batch + 1,) int64; `timestamps` (total,) int64 seconds
    or None; `actions` (total,) int64 bitmasks or None; `strengths` (total, s) float32, NaN where an event has none;
    `targets` (total,) int64, the item after each event (training only; −1 at those that train no query); `counted`
    (total,) bool, false where a target trains nothing: the padding at the end that fills a batch to a fixed shape
    (`data.padding`), and next events without an action that is wanted; None where all count.

    `context` (batch, features) int64 codes of each user, 0 unknown. `target_lengths` (batch,) int64: so many tokens at
    the end of each sequence are candidates, `labels` (candidates, tasks) float32 what came of them, NaN unknown.

    `sizes`: how many rows each selection of a model keeps of a batch filled to a fixed shape (`Retriever.sizes`), or
    None where that follows from what is in the batch.
    """

    items: Tensor
    offsets: Tensor
    timestamps: Tensor | None = None
    actions: Tensor | None = None
    targets: Tensor | None = None
    counted: Tensor | None = None
    strengths: Tensor | None = None
    context: Tensor | None = None
    target_lengths: Tensor | None = None
    labels: Tensor | None = None
    sizes: Mapping[str, int] | None = None

    @property
    def num_sequences(self) -> int:
        return self.offsets.numel() - 1

    @property
    def num_tokens(self) -> int:
        return self.items.numel()

    @cached_property
    def max_length(self) -> int:
        """Longest history; computed once, on the host, before the batch moves to a device."""
        return int(self.offsets.diff().max()) if self.num_sequences else 0

    @cached_property
    def host_offsets(self) -> Tensor:
        """`offsets` on the host, so that asking for sizes waits for no device."""
        return self.offsets.cpu()

    def to(self, device: torch.device | str) -> JaggedBatch:
        """Return the batch on `device`."""
        known = {"max_length": self.max_length, "host_offsets": self.host_offsets}
        columns: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name not in known
        }
        moved = replace(self, **columns)
        vars(moved).update(known)
        return moved


def jagged_rows(starts: Rows, ends: Rows) -> tuple[Rows, Rows]:
    """Return the event rows of [starts, ends) end to end, and their offsets."""
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - starts, lengths)
    return rows, offsets


def _column(values: npt.NDArray[Any], rows: Rows) -> Tensor:
    return torch.from_numpy(np.asarray(values[rows], dtype=np.int64))


def gather(
    data: PreparedData,
    starts: Rows,
    ends: Rows,
    *,
    targets: bool = False,
    shuffle_ties: np.random.Generator | None = None,
    inputs: Inputs | None = None,
    target_actions: int = 0,
) -> JaggedBatch:
    """Return events [starts, ends) of `data` as a batch; with `targets`, each row's next event as its target.

    With `target_actions`, a bitmask, only next events with one of these actions count. `inputs` adds strengths and
    context. `shuffle_ties` draws a new order of the events of one history that share a timestamp (the target included).
    """
    rows, offsets = jagged_rows(starts, ends)
    following = rows + 1
    if shuffle_ties is not None and data.timestamps is not None:
        rows, following = _shuffled(data.timestamps, starts, ends, shuffle_ties)
    return JaggedBatch(
        items=_column(data.items, rows),
        offsets=torch.from_numpy(offsets.astype(np.int64)),
        timestamps=None if data.timestamps is None else _column(data.timestamps, rows),
        actions=None if data.actions is None else _column(data.actions, rows),
        targets=_column(data.items, following) if targets else None,
        counted=_with_action(data, following, target_actions) if target_actions else None,
        strengths=strengths_of(inputs, rows),
        context=context_of(inputs, data, starts),
    )


def _with_action(data: PreparedData, rows: Rows, bits: int) -> Tensor:
    assert data.actions is not None, "whoever asks for actions has looked whether there are any"
    return torch.from_numpy((data.actions[rows] & bits) != 0)


def strengths_of(inputs: Inputs | None, rows: Rows) -> Tensor | None:
    """Return the strengths of event `rows` (n,), (n, s) float32, NaN at row −1; None where none are read."""
    if inputs is None or not inputs.strengths:
        return None
    values = np.stack([column[rows] for column in inputs.strengths], axis=1).astype(np.float32)
    values[rows < 0] = np.nan
    return torch.from_numpy(values)


def context_of(inputs: Inputs | None, data: PreparedData, starts: Rows) -> Tensor | None:
    """Return the context codes (n, features) of the users whose events the rows `starts` (n,) are, or None."""
    if inputs is None or inputs.context is None:
        return None
    return torch.from_numpy(inputs.context[np.searchsorted(data.offsets, starts, side="right") - 1])


def _shuffled(
    timestamps: npt.NDArray[np.int64], starts: Rows, ends: Rows, generator: np.random.Generator
) -> tuple[Rows, Rows]:
    """Return rows and following rows with the order inside each run of equal timestamps drawn anew."""
    rows, offsets = jagged_rows(starts, ends + 1)
    sequence = np.repeat(np.arange(len(starts)), np.diff(offsets))
    drawn = rows[np.lexsort((generator.random(len(rows)), timestamps[rows], sequence))]
    inside = np.ones(len(rows), bool)
    inside[offsets[1:] - 1] = False
    return drawn[inside], drawn[np.flatnonzero(inside) + 1]


class TrainingBatches:
    """Batches of training sequences, each position with its next item as target.

    Args:
        data: the data set; training rows are those of its split.
        max_length: longest history.
        batch_size: sequences a batch, or None to fill `token_budget`.
        token_budget: tokens a batch, at most (a single longer sequence still gets a batch of its own).
        windows: which part of a longer history trains: the `latest` events, one `random` window an epoch,
            or `all` of it as several sequences; `shifted` is all of it, cut at places drawn anew in every epoch, so
            that an event has another history before it each time.
        shuffle_ties: draw the order of a user's events that share a timestamp anew in every epoch; where the log's
            order within a day means nothing, this teaches the model so.
        stochastic_length: which of the long ones train whole. Where load is balanced, `token_budget` holds on average.
        inputs: strengths and context that the model reads too.
        target_actions: bitmask; next events with none of these actions train nothing. 0: all train.
        seed: order and windows depend on (seed, epoch) alone, so a run resumes at any (epoch, step), where load is
            balanced with the `tensors` that it had there.
        share: which part of each batch this process trains on.
    """

    def __init__(
        self,
        data: PreparedData,
        *,
        max_length: int,
        batch_size: int | None = 128,
        token_budget: int | None = None,
        windows: Windows = "latest",
        shuffle_ties: bool = False,
        stochastic_length: StochasticLengthConfig | None = None,
        inputs: Inputs | None = None,
        target_actions: int = 0,
        seed: int = 0,
        share: Share | None = None,
    ) -> None:
        check_size(batch_size, token_budget)
        self.target_actions = target_actions
        self.data, self.inputs, self.share = data, inputs, share or Share()
        self.max_length, self.batch_size, self.token_budget = max_length, batch_size, token_budget
        self.windows, self.shuffle_ties, self.seed = windows, shuffle_ties, seed
        start, end = data.offsets[:-1], data.split.train_end - 1  # the last training event is only a target
        trained = np.flatnonzero(end > start)
        if not len(trained):
            raise InputError(
                "no user has two training events, so there is nothing to learn from: "
                "check the user and time columns, or lower the filters"
            )
        self._start, self._end = start[trained], end[trained]
        self._rule: StochasticLength | None = None
        self._balancer: LoadBalancer | None = None
        if stochastic_length is not None:
            self._rule, self._balancer = stochastic_length.build(max_length, self.share)

    def steps(self, epoch: int) -> int:
        """Return the number of batches of `epoch`."""
        return len(self._plan(epoch)[3])

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[JaggedBatch]:
        """Yield the batches of `epoch` from `first_step` on."""
        starts, ends, sizes, groups = self._plan(epoch)
        for step, group in enumerate(groups[first_step:], first_step):
            mine = self.share.of(group)
            start, end = starts[mine], ends[mine]
            # A generator a step, so that a resumed epoch draws what an uninterrupted one would.
            place = (self.seed, epoch, step, self.share.rank)
            if self._balancer is not None:
                size = len(group) if self.batch_size else sizes[group].sum()
                drawn = self._balancer.draw(end - start, size / self.share.world, np.random.default_rng((*place, 1)))
                start = end - drawn
            ties = np.random.default_rng(place) if self.shuffle_ties else None
            yield gather(
                self.data,
                start,
                end,
                targets=True,
                shuffle_ties=ties,
                inputs=self.inputs,
                target_actions=self.target_actions,
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep besides (epoch, step)."""
        return {} if self._balancer is None else self._balancer.tensors()

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Undo `tensors`."""
        if self._balancer is not None:
            self._balancer.load_tensors(tensors)

    def _plan(self, epoch: int) -> tuple[Rows, Rows, Rows, list[Rows]]:
        """Return the sequences as rows [starts, ends), how many tokens each is reckoned as, and those of each batch."""
        generator = np.random.default_rng((self.seed, epoch))
        starts, ends = self._sequences(generator)
        order = generator.permutation(len(starts))
        sizes = ends - starts
        if self._balancer is not None:  # draws at each step, so the plan goes by what is expected
            sizes = np.ceil(self._balancer.rule.expected(sizes)).astype(np.int64)
        elif self._rule is not None:
            sizes = self._rule.draw(sizes, generator)
            starts = ends - sizes
        return starts, ends, sizes, batch_groups(order, sizes[order], self.batch_size, self.token_budget)

    def _sequences(self, generator: np.random.Generator) -> tuple[Rows, Rows]:
        start, end = self._start, self._end
        excess = np.maximum(end - start - self.max_length, 0)
        if self.windows == "random":
            begin = start + (generator.random(len(start)) * (excess + 1)).astype(np.int64)
            return begin, np.minimum(begin + self.max_length, end)
        if self.windows == "latest":
            return start + excess, end
        # Windows are counted back from `last`: the newest event, or beyond it, which makes the newest window shorter.
        last = end
        if self.windows == "shifted":
            last = end + (excess > 0) * (generator.random(len(end)) * self.max_length).astype(np.int64)
        count = -(-(last - start) // self.max_length)
        piece = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)  # 0 = newest
        stop = np.repeat(last, count) - piece * self.max_length
        return np.maximum(stop - self.max_length, np.repeat(start, count)), np.minimum(stop, np.repeat(end, count))


class HistoryBatches:
    """The histories of an evaluation set, newest `max_length` events each, in user order.

    Iterating yields (`slice` into the evaluation set, `JaggedBatch`).
    """

    def __init__(
        self,
        data: PreparedData,
        chosen: EvaluationSet,
        *,
        max_length: int | None,
        token_budget: int = 32_768,
        inputs: Inputs | None = None,
    ) -> None:
        self.data, self.chosen, self.token_budget, self.inputs = data, chosen, token_budget, inputs
        longest = chosen.target - chosen.start if max_length is None else max_length
        self._start = np.maximum(chosen.start, chosen.target - longest)

    def __iter__(self) -> Iterator[tuple[slice, JaggedBatch]]:
        lengths = self.chosen.target - self._start
        begin = 0
        while begin < len(lengths):
            within = np.cumsum(lengths[begin : begin + self.token_budget]) <= self.token_budget
            stop = begin + max(1, int(np.count_nonzero(within)))
            yield (
                slice(begin, stop),
                gather(self.data, self._start[begin:stop], self.chosen.target[begin:stop], inputs=self.inputs),
            )
            begin = stop


def batch_of_sequences(sequences: list[list[int]], max_length: int | None = None, **columns: Any) -> JaggedBatch:
    """Return raw sequences of catalogue indices as a batch, cut to the newest `max_length`."""
    cut = [s if max_length is None else s[-max_length:] for s in sequences]
    lengths = torch.tensor([len(s) for s in cut], dtype=torch.int64)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return JaggedBatch(torch.tensor([i for s in cut for i in s], dtype=torch.int64), offsets, **columns)
