"""A batch seen by a drift policy: its moments, and the policy's next state, as one CUDA graph where there is a GPU.

The policies are some seventy operations on vectors. On a GPU their launches would cost a small encoder's step a tenth;
captured once a batch shape and replayed, they are one launch and compute bit for bit the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longview.metric_learning.drift import DriftPolicy, DriftState
from longview.metric_learning.moments import Reduce, batch_moments

SHAPES = 8  # batch shapes that have a graph; further ones run operation by operation
SIGHTINGS = 2  # times that a shape is met before it is worth a graph


class Observation(NamedTuple):
    """What a batch tells: the policy's next state; the batch's own moments (2, d); its rows (b, d) as they are stored.

    With the anchor `memory` that depends on the memory, and the rows are as they came.
    """

    state: DriftState
    own: Tensor
    stored: Tensor


def observe(
    policy: DriftPolicy, floor: float, values: Tensor, labels: Tensor, state: DriftState, reduce: Reduce | None = None
) -> Observation:
    """Return what the batch tells; changes nothing."""
    found = batch_moments(values, labels if policy.wants_noise else None, reduce=reduce, floor=floor)
    new, own = policy.update(state, found), found.values
    if policy.anchor == "memory":
        return Observation(new, own, values)
    return Observation(new, own, standardised(values, own if policy.anchor == "batch" else new.moments))


def standardised(values: Tensor, moments: Tensor) -> Tensor:
    """Return `values` (b, d) less the mean and over the standard deviation of `moments` (2, d)."""
    return (values - moments[0]) / moments[1]


class Observer:
    """`observe` for a policy; graphs belong to this object, not to what is saved or copied."""

    def __init__(self, policy: DriftPolicy, floor: float) -> None:
        self.policy, self.floor = policy, floor
        self._seen: dict[Any, int] = {}
        self._graphs: dict[Any, _Graph] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Observer:
        return Observer(self.policy, self.floor)

    def __getstate__(self) -> dict[str, Any]:
        return {"policy": self.policy, "floor": self.floor, "_seen": {}, "_graphs": {}}

    def __call__(self, values: Tensor, labels: Tensor, state: DriftState, reduce: Reduce | None = None) -> Observation:
        """Return what `observe` returns; `stored` holds until the next call."""
        # The first batch takes another way through the policies, once.
        graph = self._graph(values, labels, state) if reduce is None and values.is_cuda and int(state.steps) else None
        if graph is None:
            return observe(self.policy, self.floor, values, labels, state, reduce)
        return graph(values, labels, state)

    def _graph(self, values: Tensor, labels: Tensor, state: DriftState) -> _Graph | None:
        if torch.cuda.is_current_stream_capturing():
            return None  # whoever captures the whole step captures this with it
        key = (values.device, values.shape, values.dtype)
        if key not in self._graphs and len(self._graphs) < SHAPES:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] > SIGHTINGS:
                self._graphs[key] = _Graph(self.policy, self.floor, values, labels, state)
        return self._graphs.get(key)


class _Graph:
    """`observe` captured for one batch shape, past the first batch."""

    def __init__(self, policy: DriftPolicy, floor: float, values: Tensor, labels: Tensor, state: DriftState) -> None:
        self.labels = labels.clone() if policy.wants_noise else None
        self.floats = [tensor.clone() for tensor in (values, *state[:-1])]  # one kernel copies them all
        self.sizes = [tensor.numel() for tensor in (*state[:-1], state.moments)]
        classes = labels if self.labels is None else self.labels

        def run() -> tuple[Tensor, Tensor]:
            known = DriftState._make([*self.floats[1:], state.steps])
            new, own, stored = observe(policy, floor, self.floats[0], classes, known)
            return torch.cat([part.flatten() for part in (*new[:-1], own)]), stored

        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(2):
                run()
        current.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.results, self.stored = run()

    def __call__(self, values: Tensor, labels: Tensor, state: DriftState) -> Observation:
        torch._foreach_copy_(self.floats, [values, *state[:-1]])
        if self.labels is not None:
            self.labels.copy_(labels)
        self.graph.replay()
        # The next replay overwrites what this one made, and a loss may still need the state's moments then.
        *parts, own = torch.split(self.results.clone(), self.sizes)
        shaped = [part.view(old.shape) for part, old in zip(parts, state[:-1], strict=True)]
        return Observation(DriftState._make([*shaped, state.steps + 1]), own.view_as(state.moments), self.stored)
