"""A batch seen by a drift policy: its moments, the policy's next state, and its rows as they are stored.

In plain torch the policies are up to seventy operations on vectors. On a GPU their launches would cost a small
encoder's step a tenth, so two kernels compute the same there (`ops.drift_filter`), to the last digits of float32.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from longview.metric_learning.drift import DriftPolicy, DriftState, MomentMatching, MovingAverage
from longview.metric_learning.kalman import AdaptiveMomentMatching
from longview.metric_learning.moments import Reduce, batch_moments
from longview.ops.drift_filter import Before, Filter, filtered, why_not


class Observation(NamedTuple):
    """What a batch tells: the policy's next state; the batch's own moments (2, d); its rows (b, d) as they are stored.

    With the anchor `memory` that depends on the memory, and the rows are as they came.
    """

    state: DriftState
    own: Tensor
    stored: Tensor


def observe(
    policy: DriftPolicy,
    floor: float,
    values: Tensor,
    labels: Tensor,
    state: DriftState,
    reduce: Reduce | None = None,
    *,
    kernels: bool | None = None,
) -> Observation:
    """Return what the batch tells; changes nothing.

    `kernels`: whether Triton computes it; by default on a GPU where it can, beyond the first batch.
    """
    if kernels is None:
        # The first batch takes another way through the policies, once.
        plain = not values.is_cuda or reduce is not None or not len(values)
        kernels = not plain and int(state.steps) > 0 and why_not(values) is None
    setting = filter_of(policy, floor) if kernels else None
    if setting is not None:
        before = Before(state.moments, state.error, state.gain, state.surprise, state.evidence, state.drift)
        got = filtered(setting, values, labels, before)
        after = DriftState(got.moments, got.error, got.drift, got.gain, got.surprise, got.evidence, state.steps + 1)
        return Observation(after, got.own, got.stored)
    found = batch_moments(values, labels if policy.wants_noise else None, reduce=reduce, floor=floor)
    new, own = policy.update(state, found), found.values
    if policy.anchor == "memory":
        return Observation(new, own, values)
    return Observation(new, own, standardised(values, own if policy.anchor == "batch" else new.moments))


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
