"""A batch seen by a drift policy: its moments, the policy's next state, and its rows as they are stored.

In plain torch the policies are up to seventy operations on vectors. On a GPU their launches would cost a small
encoder's step a tenth, so two kernels compute the same there (`ops.drift_filter`), to the last digits of float32.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from longview.metric_learning.drift import DriftPolicy, DriftState, MomentMatching, MovingAverage
from longview.metric_learning.kalman import AdaptiveMomentMatching
from longview.metric_learning.moments import Reduce, batch_moments
from longview.ops.drift_filter import Before, Filter, Filtered, filtered, room_for, why_not


class Observation(NamedTuple):
    """What a batch tells: the policy's next state; the batch's own moments (2, d); its rows (b, d) as they are stored.

    With the anchor `memory` that depends on the memory, and the rows are as they came.
    """

    state: DriftState
    own: Tensor
    stored: Tensor


class Rooms:
    """Places for what the kernels make of the batches of one memory.

    A state and its rows stay as they are while the next batch is observed. The batch after it writes over them.

    Args:
        storage: the dtype of the rows that are standardised.
        again: use places in turn; otherwise every one is new, as it must be in a graph that outlives them.
    """

    def __init__(self, storage: torch.dtype, *, again: bool = True) -> None:
        self.storage, self.again = storage, again
        self._made: list[Filtered] = []

    def other_than(self, state: DriftState, setting: Filter, values: Tensor) -> Filtered:
        """Return a place that `state` does not lie in, for a batch like `values`."""
        made = self._made
        if made and (made[0].shape != values.shape or made[0].kept.device != values.device):
            made.clear()  # a batch of another size: who still reads the old places keeps them
        for room in made:
            if room.moments is not state.moments:
                return room
        room = room_for(setting, values, self.storage)
        if self.again:
            made.append(room)
        return room


def observe(
    policy: DriftPolicy,
    floor: float,
    values: Tensor,
    labels: Tensor,
    state: DriftState,
    reduce: Reduce | None = None,
    *,
    rooms: Rooms | None = None,
    kernels: bool | None = None,
) -> Observation:
    """Return what the batch tells; changes nothing.

    rooms: where kernels write, and in which dtype rows are stored; by default new tensors, and that of `values`.
    kernels: whether Triton computes it; by default on a GPU where it can, beyond the first batch.
    """
    if kernels is None:
        # The first batch takes another way through the policies, once.
        plain = not values.is_cuda or reduce is not None or not len(values)
        kernels = not plain and int(state.steps) > 0 and why_not(values) is None
    setting = filter_of(policy, floor) if kernels else None
    if setting is not None:
        rooms = rooms or Rooms(values.dtype)
        room = rooms.other_than(state, setting, values)
        before = Before(state.moments, state.error, state.gain, state.surprise, state.evidence, state.drift)
        filtered(values, labels, before, room)
        surprise, evidence = room.surprise, room.evidence
        if surprise is None or evidence is None:
            surprise, evidence = state.surprise, state.evidence
        after = DriftState(room.moments, room.error, room.drift, room.gain, surprise, evidence, state.steps + 1)
        return Observation(after, room.own, values if room.stored is None else room.stored)
    found = batch_moments(values, labels if policy.wants_noise else None, reduce=reduce, floor=floor)
    new, own = policy.update(state, found), found.values
    if policy.anchor == "memory":
        return Observation(new, own, values)
    stored = standardised(values, own if policy.anchor == "batch" else new.moments)
    return Observation(new, own, stored if rooms is None else stored.to(rooms.storage))


@functools.lru_cache(maxsize=64)
def filter_of(policy: DriftPolicy, floor: float) -> Filter | None:
    """Return the policy as the kernels know it, or None for one that they do not have."""
    if isinstance(policy, MomentMatching):
        return Filter("xbn", policy.anchor, floor)
    if isinstance(policy, MovingAverage):
        return Filter("moving-average", policy.anchor, floor, policy.rate)
    if isinstance(policy, AdaptiveMomentMatching):
        return Filter(
            "axbn",
            policy.anchor,
            floor,
            policy.drift_rate,
            policy.observation_noise,
            squared=policy.filter == "variance",
            shared=policy.gain == "shared",
            sampled=policy.noise == "sampler",
            learned=policy.process == "innovations",
            weighed=policy.noise == "innovations",
        )
    return None


def standardised(values: Tensor, moments: Tensor) -> Tensor:
    """Return `values` (b, d) less the mean and over the standard deviation of `moments` (2, d)."""
    mean, std = moments.unbind()
    return (values - mean).div_(std)
