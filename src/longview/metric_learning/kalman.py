"""Adaptive cross-batch normalisation: the moments of the population, estimated by a Kalman filter."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from longview.metric_learning.drift import (
    Anchor,
    DriftPolicy,
    DriftState,
    MomentMatching,
    MovingAverage,
    NoCorrection,
)
from longview.metric_learning.moments import BatchMoments

TINY = 1e-30


class AdaptiveMomentMatching(DriftPolicy):
    """Adaptive XBN: the memory gets the filtered moments of the current embeddings.

    The state x is a moment of the population, which walks at random (process noise q); the observation is that of a
    batch (noise r): P⁻ = P + q, K = P⁻ / (P⁻ + r), x ← x + K (x_batch − x), P = (1 − K) P⁻. K → 1 is XBN, K → 0
    freezes the moments. Both noises are in units of the population's variance, so they mean the same at any scale.

    Attributes:
        filter: the second moment is filtered as `sigma` or as `variance`.
        gain: one for all dimensions (`shared`: noises averaged over them), or one a `dimension`.
        noise: r is `constant` (`observation_noise`), or follows from how the `sampler` draws classes
            (`moments.batch_moments`): four classes a batch say less of the population than sixty-four.
        process: q is `constant` (`process_noise`), or estimated from the `innovations`: what batches differ by from
            the estimate, beyond P and r, is what the population has moved. It starts at `process_noise`.
        drift_rate: weight of the newest innovation in that estimate.

    Source: arXiv 2303.17127; the sampler's noise, the estimated process noise and the anchor are ours.
    """

    kind: Literal["axbn"] = "axbn"
    anchor: Anchor = "state"
    filter: Literal["sigma", "variance"] = "sigma"
    gain: Literal["shared", "dimension"] = "shared"
    noise: Literal["constant", "sampler"] = "sampler"
    observation_noise: float = Field(default=0.01, ge=0)
    process: Literal["constant", "innovations"] = "innovations"
    process_noise: float = Field(default=1e-4, ge=0)
    drift_rate: float = Field(default=0.01, gt=0, le=1)

    @model_validator(mode="after")
    def _some_noise(self) -> AdaptiveMomentMatching:
        if self.noise == self.process == "constant" and self.process_noise == self.observation_noise == 0:
            raise ValueError("process_noise and observation_noise are both 0, so the gain is 0/0: make one positive")
        return self

    @property
    def wants_noise(self) -> bool:
        return self.noise == "sampler"

    def update(self, state: DriftState, batch: BatchMoments) -> DriftState:
        """Return the filter's state after it has observed the moments of a batch."""
        scale, noise = self._scale_and_noise(batch)
        if int(state.steps) == 0:
            # A first batch of one class leaves the mean as unsure as the population is wide.
            error, drift = noise.nan_to_num(posinf=1.0), torch.full_like(state.drift, self.process_noise)
            return DriftState(batch.values, error, drift, torch.ones_like(batch.values), state.steps + 1)
        old, new = self._filtered(state.moments), self._filtered(batch.values)
        before = state.error + state.drift.clamp_min(0)
        # Nothing known and nothing unsure (0 / 0): the batch is as good as exact. An infinite noise: it says nothing.
        gain = (before / (before + noise)).nan_to_num(1.0)
        drift = state.drift
        if self.process == "innovations":
            surprise = ((new - old).square() / scale - state.error - noise).mean(1, keepdim=True)
            drift = torch.where(surprise.isfinite(), torch.lerp(drift, surprise, self.drift_rate), drift)
        moments = self._moments(torch.lerp(old, new, gain), gain, batch.values)
        return DriftState(moments, (1 - gain) * before, drift, gain, state.steps + 1)

    def steady_gain(self) -> float:
        """Return the gain that constant noises settle to: (√(ρ² + 4ρ) − ρ) / 2 with ρ = q / r."""
        if self.observation_noise == 0:
            return 1.0
        ratio = self.process_noise / self.observation_noise
        return (math.sqrt(ratio**2 + 4 * ratio) - ratio) / 2

    def _filtered(self, moments: Tensor) -> Tensor:
        """Return mean and standard deviation (2, d) as what is filtered."""
        return moments if self.filter == "sigma" else torch.stack([moments[0], moments[1].square()])

    def _moments(self, filtered: Tensor, gain: Tensor, batch: Tensor) -> Tensor:
        if self.filter == "sigma":
            return filtered
        # The root of a square is not always the same float: with a gain of 1, sigma is the batch's bit for bit.
        return torch.stack([filtered[0], torch.where(gain[1] == 1, batch[1], filtered[1].sqrt())])

    def _scale_and_noise(self, batch: BatchMoments) -> tuple[Tensor, Tensor]:
        """Return the square of the unit of each moment, and the noise of the batch in it, both (2, d)."""
        variance = batch.values[1].square()
        squared = variance.square() if self.filter == "variance" else variance
        scale = self._pooled(torch.stack([variance, squared])).clamp_min(TINY)
        if self.noise == "constant":
            return scale, torch.full_like(scale, self.observation_noise)
        assert batch.noise is not None
        mean, spread = batch.noise
        if self.filter == "sigma":  # the delta rule, d(sigma) = d(variance) / (2 sigma)
            spread = spread / (4 * variance).clamp_min(TINY)
        return scale, self._pooled(torch.stack([mean, spread])) / scale

    def _pooled(self, values: Tensor) -> Tensor:
        """Return `values` (2, d), or their means over dimensions where these share a gain."""
        return values if self.gain == "dimension" else values.mean(1, keepdim=True).expand_as(values)


Drift = Annotated[  # what a configuration file names by `kind`
    NoCorrection | MomentMatching | AdaptiveMomentMatching | MovingAverage, Field(discriminator="kind")
]
