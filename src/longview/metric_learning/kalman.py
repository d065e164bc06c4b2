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

    By default both are learned from the innovations e = x_batch − x. Their squares average to P⁻ + r. What of one is
    no noise is still there when the next batch comes: e times the distance of that batch from the same x averages to
    P⁻. The ratio is the gain, the share of a surprise that the next batch confirms (Mehra 1970: of the best gain,
    innovations are white). Drift with a direction, which a random walk has not, confirms all of it, and the gain is 1.

    Attributes:
        filter: the second moment is filtered as `sigma` or as `variance`.
        gain: one for all dimensions (`shared`: noises averaged over them), or one a `dimension`.
        noise: r is learned from the `innovations`, and q with it; or `constant` (`observation_noise`), or follows
            from how the `sampler` draws classes (`moments.batch_moments`): four classes a batch say less of the
            population than sixty-four. That holds where rows do not depend on each other: batch normalisation makes
            the means of batches several times more alike.
        process: where r is not learned, q is `constant` (`process_noise`), or estimated from the `innovations`: what
            their squares are beyond P and r. It starts at `process_noise`.
        drift_rate: weight of the newest innovation in what is learned from them.

    Source: arXiv 2303.17127; the learned noises (R. K. Mehra, On the identification of variances and adaptive Kalman
    filtering, 1970), the sampler's noise and the anchor are ours.
    """

    kind: Literal["axbn"] = "axbn"
    anchor: Anchor = "state"
    filter: Literal["sigma", "variance"] = "sigma"
    gain: Literal["shared", "dimension"] = "shared"
    noise: Literal["innovations", "constant", "sampler"] = "innovations"
    observation_noise: float = Field(default=0.01, ge=0)
    process: Literal["innovations", "constant"] = "innovations"
    process_noise: float = Field(default=1e-4, ge=0)
    drift_rate: float = Field(default=0.05, gt=0, le=1)

    @model_validator(mode="after")
    def _some_noise(self) -> AdaptiveMomentMatching:
        if self.noise == self.process == "constant" and self.process_noise == self.observation_noise == 0:
            raise ValueError("process_noise and observation_noise are both 0, so the gain is 0/0: make one positive")
        if self.noise == "innovations" and self.process == "constant":
            raise ValueError(
                "process constant goes with noise constant or sampler: innovations tell both noises, or with a known "
                "observation noise the other"
            )
        return self

    @property
    def wants_noise(self) -> bool:
        return self.noise == "sampler"

    def update(self, state: DriftState, batch: BatchMoments) -> DriftState:
        """Return the filter's state after it has observed the moments of a batch."""
        if int(state.steps) == 0:
            return self._first(state, batch)
        old, new = self._filtered(state.moments), self._filtered(batch.values)
        if self.noise == "innovations":
            state = self._weighed(state, new - old, self._scale(batch))
        else:
            state = self._given(state, new - old, *self._scale_and_noise(batch))
        moments = self._moments(torch.lerp(old, new, state.gain), state.gain, batch.values)
        return state._replace(moments=moments, steps=state.steps + 1)

    def _first(self, state: DriftState, batch: BatchMoments) -> DriftState:
        """Return the state after the first batch, which is all there is."""
        state = state._replace(moments=batch.values, gain=torch.ones_like(batch.values), steps=state.steps + 1)
        if self.noise == "innovations":
            nothing = torch.zeros_like(state.surprise)
            return state._replace(surprise=nothing, evidence=torch.zeros_like(state.evidence))
        # A first batch of one class leaves the mean as unsure as the population is wide.
        error = self._scale_and_noise(batch)[1].nan_to_num(posinf=1.0)
        return state._replace(error=error, drift=torch.full_like(state.drift, self.process_noise))

    def _weighed(self, state: DriftState, surprise: Tensor, scale: Tensor) -> DriftState:
        """Return error, drift, gain and evidence where both noises are learned."""
        then = state.surprise
        # This batch less what was expected of the one before it, and that one less the same. The second batch has no
        # surprise before it: its own counts as confirmed, which is XBN.
        confirmed, squared = torch.addcmul(surprise, state.gain, then).mul_(then), then.square()
        found = self._pooled(torch.stack([confirmed, squared, surprise.square()])).div(scale)
        evidence = torch.lerp(state.evidence, found[:2], self.drift_rate)
        evidence = torch.where(evidence[1] > 0, evidence, found[2])
        told, squares = evidence.unbind()
        gain = told.div(squares).nan_to_num_(1.0).clamp_(0, 1)  # 0 / 0: nothing moves, no batch differs
        before = gain * squares
        left = gain * before
        return state._replace(
            error=before - left, drift=left.mean(1, keepdim=True), gain=gain, surprise=surprise, evidence=evidence
        )

    def _given(self, state: DriftState, surprise: Tensor, scale: Tensor, noise: Tensor) -> DriftState:
        """Return error, drift and gain where r is known."""
        before = state.error + state.drift.clamp_min(0)
        # Nothing known and nothing unsure (0 / 0): the batch is as good as exact. An infinite noise: it says nothing.
        gain = (before / (before + noise)).nan_to_num(1.0)
        drift = state.drift
        if self.process == "innovations":
            beyond = (surprise.square() / scale - state.error - noise).mean(1, keepdim=True)
            drift = torch.where(beyond.isfinite(), torch.lerp(drift, beyond, self.drift_rate), drift)
        return state._replace(error=(1 - gain) * before, drift=drift, gain=gain)

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

    def _scale(self, batch: BatchMoments) -> Tensor:
        """Return the square of the unit of each moment, (2, d), or less where some have the same."""
        variance = batch.values[1].square()
        both = variance if self.filter == "sigma" else torch.stack([variance, variance.square()])
        return self._pooled(both).clamp_min(TINY)

    def _scale_and_noise(self, batch: BatchMoments) -> tuple[Tensor, Tensor]:
        """Return the square of the unit of each moment, and the noise of the batch in it, (2, d)."""
        scale = self._scale(batch)
        if self.noise == "constant":
            return scale, torch.full_like(batch.values, self.observation_noise)
        assert batch.noise is not None
        mean, spread = batch.noise
        if self.filter == "sigma":  # the delta rule, d(sigma) = d(variance) / (2 sigma)
            spread = spread / (4 * batch.values[1].square()).clamp_min(TINY)
        return scale, (self._pooled(torch.stack([mean, spread])) / scale).expand_as(batch.values)

    def _pooled(self, values: Tensor) -> Tensor:
        """Return `values` (…, d), or their means over dimensions (…, 1) where these share a gain."""
        return values if self.gain == "dimension" else values.mean(-1, keepdim=True)


Drift = Annotated[  # what a configuration file names by `kind`
    NoCorrection | MomentMatching | AdaptiveMomentMatching | MovingAverage, Field(discriminator="kind")
]
