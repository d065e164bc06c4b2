"""How stored embeddings follow the encoder: policies that say which moments "then" and "now" stand for.

A stored row was made by an older encoder. Every policy here corrects it by one affine map a dimension,
m̂ = (m − μ_then) / σ_then · σ_now + μ_now, and differs in what it takes for the moments.

Sources: cross-batch memory (no correction), arXiv 1912.06798; cross-batch normalisation and its adaptive form, arXiv
2303.17127. No public code of the second exists; this is a reconstruction, with its choices as options.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from longview.config import Config
from longview.metric_learning.moments import BatchMoments

Anchor = Literal["state", "batch", "memory"]


class DriftState(NamedTuple):
    """What a policy remembers of the population: all tensors, so that it is saved and resumed bit for bit.

    moments: (2, d), mean and standard deviation "now". error: (2, d), the filter's variance of each. drift: (2, 1),
    what the population moves a step, squared. gain: (2, d), the weight that the newest batch got. surprise: (2, d),
    what the newest batch differed by from what was expected of it. evidence: (2, 2, d), averages of what of a surprise
    the next batch confirmed, and of surprises squared. Squares are in units of the population's variance. steps: ()
    int64 on the CPU, batches seen.
    """

    moments: Tensor
    error: Tensor
    drift: Tensor
    gain: Tensor
    surprise: Tensor
    evidence: Tensor
    steps: Tensor

    @classmethod
    def empty(cls, width: int, dtype: torch.dtype, device: torch.device | None = None) -> DriftState:
        """Return the state before any batch."""
        moments = torch.zeros(2, width, dtype=dtype, device=device)
        moments[1] = 1
        return cls(
            moments,
            torch.zeros_like(moments),
            torch.zeros(2, 1, dtype=dtype, device=device),
            torch.ones_like(moments),
            torch.zeros_like(moments),
            torch.zeros(2, 2, width, dtype=dtype, device=device),
            torch.zeros((), dtype=torch.int64, device="cpu"),
        )


class DriftPolicy(Config):
    """The interface: a frozen setting whose `update` is a pure function, so that a failed step has changed nothing.

    Attributes:
        anchor: which moments a row is standardised by when it is stored.
            `batch`: those of its own batch. Every batch then gets the same mean, which is what XBN's rewriting of the
            whole memory does to it, at O(batch) instead of O(memory) a step.
            `state`: the policy's estimate at that step. What a batch differs by from the population is kept; a gain
            of 0 is plain XBM and a gain of 1 is XBN.
            `memory`: those of the whole memory as it stands, from running sums: the literal rule, whatever is
            enqueued.
    """

    corrects: ClassVar[bool] = True
    anchor: Anchor = "batch"

    @property
    def wants_noise(self) -> bool:
        """Whether `update` reads the noise of the batch moments."""
        return False

    @abstractmethod
    def update(self, state: DriftState, batch: BatchMoments) -> DriftState:
        """Return the state after `batch`; `state` stays as it is."""


class NoCorrection(DriftPolicy):
    """Plain cross-batch memory (XBM): rows are used as they were stored."""

    corrects: ClassVar[bool] = False
    kind: Literal["none"] = "none"

    def update(self, state: DriftState, batch: BatchMoments) -> DriftState:
        return state


class MomentMatching(DriftPolicy):
    """Cross-batch normalisation (XBN): the memory gets the moments of the newest batch."""

    kind: Literal["xbn"] = "xbn"

    def update(self, state: DriftState, batch: BatchMoments) -> DriftState:
        return state._replace(moments=batch.values, steps=state.steps + 1)


class MovingAverage(DriftPolicy):
    """The memory gets an exponential average of batch moments; `rate` is the weight of the newest batch.

    A Kalman filter with constant noises settles to this, at its `steady_gain`.
    """

    kind: Literal["moving-average"] = "moving-average"
    rate: float = Field(default=0.1, gt=0, le=1)
    anchor: Anchor = "state"

    def update(self, state: DriftState, batch: BatchMoments) -> DriftState:
        gain = torch.full_like(batch.values, self.rate if int(state.steps) else 1.0)
        moments = torch.lerp(state.moments, batch.values, gain)  # exact where the gain is 1
        return state._replace(moments=moments, gain=gain, steps=state.steps + 1)
