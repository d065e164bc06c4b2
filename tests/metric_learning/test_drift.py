"""Moment matching: the identities it stands on, and what each policy's limits are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from longview.metric_learning import AdaptiveMomentMatching, DriftState, MovingAverage, batch_moments
from longview.metric_learning.moments import BatchMoments
from tests.metric_learning.helpers import WIDTH, drifting, memory

CONSTANT = {"noise": "constant", "process": "constant"}


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.mean(0), rows.std(0, correction=0)


def rewritten(stream: list[Any], capacity: int, target: Any = None) -> list[Tensor]:
    """Return the memory of every step when it is rewritten in place to the moments `target(step)` says.

    This is the rule as it is published: normalise all rows to the current moments, use them, enqueue the batch.
    """
    seen, rows = [], torch.zeros(0, WIDTH, dtype=torch.float64)
    for step, (batch, _, _) in enumerate(stream):
        mean, std = moments(batch) if target is None else target(step)
        if len(rows):
            mu, sigma = moments(rows)
            rows = (rows - mu) / sigma * std + mean
        seen.append(rows)
        rows = torch.cat([rows, batch])[-capacity:]
    return seen


def in_order(reference: Any, ring: Any) -> Tensor:
    """Return corrected rows, oldest first."""
    return reference.embeddings()[ring.newest()]


def test_storing_standardised_batches_equals_rewriting_the_memory_every_step() -> None:
    stream = drifting(60)
    expected = rewritten(stream, 40)
    bank = memory({"kind": "xbn"})
    for step, (batch, labels, ids) in enumerate(stream):
        got = in_order(bank(batch, labels, ids), bank.queue)
        torch.testing.assert_close(got, expected[step], rtol=0, atol=1e-13)  # 12 cohorts of evictions included


def test_running_sums_equal_rewriting_whatever_is_enqueued() -> None:
    """The anchor `memory` is the literal rule for any filter and any capacity: here 37 rows of 8 a batch."""
    stream = drifting(60)
    bank = memory({"kind": "axbn", "anchor": "memory"}, capacity=37)
    seen, targets = [], []
    for batch, labels, ids in stream:
        seen.append(in_order(bank(batch, labels, ids), bank.queue))
        targets.append(tuple(bank.drift_moments.clone()))
    for got, expected in zip(seen, rewritten(stream, 37, lambda step: targets[step]), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("filter_", ["sigma", "variance"])
@pytest.mark.parametrize("gain", ["shared", "dimension"])
def test_a_gain_of_one_is_xbn_bit_for_bit(filter_: str, gain: str) -> None:
    exact = {**CONSTANT, "observation_noise": 0.0, "process_noise": 0.1, "filter": filter_, "gain": gain}
    plain, adaptive = memory({"kind": "xbn"}), memory({"kind": "axbn", **exact})
    for batch, labels, ids in drifting(20):
        one, other = plain(batch, labels, ids), adaptive(batch, labels, ids)
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.embeddings(), other.embeddings())


def test_a_gain_of_zero_is_plain_xbm() -> None:
    frozen = {**CONSTANT, "observation_noise": 1.0, "process_noise": 0.0}
    plain, adaptive = memory(), memory({"kind": "axbn", **frozen})
    stream = drifting(12)
    adaptive._set(adaptive.drift_state._replace(steps=torch.ones((), dtype=torch.int64)))  # P = 0 and known
    for batch, labels, ids in stream:
        one, other = plain(batch, labels, ids), adaptive(batch, labels, ids)
        torch.testing.assert_close(one.embeddings(), other.embeddings(), rtol=0, atol=1e-13)
    assert bool((adaptive.drift_state.gain == 0).all())


@pytest.mark.parametrize("ratio", [1e-4, 0.01, 0.3, 4.0])
def test_constant_noises_settle_to_the_steady_gain(ratio: float) -> None:
    policy = AdaptiveMomentMatching(
        noise="constant", process="constant", observation_noise=0.5, process_noise=0.5 * ratio
    )
    state = DriftState.empty(WIDTH, torch.float64)
    for _ in range(2000):
        state = policy.update(state, BatchMoments(torch.ones(2, WIDTH, dtype=torch.float64)))
    expected = ((ratio**2 + 4 * ratio) ** 0.5 - ratio) / 2
    assert policy.steady_gain() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(state.gain, torch.full_like(state.gain, expected), rtol=1e-9, atol=0)


def test_a_settled_filter_is_a_moving_average() -> None:
    policy = AdaptiveMomentMatching(noise="constant", process="constant")
    average = MovingAverage(rate=policy.steady_gain())
    state = DriftState.empty(WIDTH, torch.float64)
    for batch, _, _ in drifting(500):
        state = policy.update(state, batch_moments(batch))
    other = state
    for batch, _, _ in drifting(50, seed=1):
        found = batch_moments(batch)
        state, other = policy.update(state, found), average.update(other, found)
    torch.testing.assert_close(state.moments, other.moments, rtol=1e-9, atol=1e-12)


def test_the_affine_map_moves_to_the_batch_side() -> None:
    bank = memory({"kind": "axbn"})
    for batch, labels, ids in drifting(8):
        reference = bank(batch, labels, ids)
    z, scale, shift = batch, reference.scale, reference.shift
    direct = z @ reference.embeddings().T
    torch.testing.assert_close((z * scale) @ reference.rows.T + (z @ shift)[:, None], direct)
    m = reference.rows
    norms = (scale**2 * m**2 + 2 * scale * shift * m).sum(1) + shift.square().sum()
    torch.testing.assert_close(norms, reference.embeddings().square().sum(1))


def test_matched_rows_have_mean_square_norm_one_and_single_norms_that_do_not() -> None:
    bank = memory({"kind": "xbn"})
    for batch, labels, ids in drifting(12, batch=20, classes=10):
        reference = bank(torch.nn.functional.normalize(batch, dim=1), labels, ids)
    squares = reference.embeddings().square().sum(1)
    assert squares.mean().item() == pytest.approx(1, abs=1e-12)
    assert squares.sqrt().max() - squares.sqrt().min() > 0.1
    again = memory({"kind": "xbn"}, renormalise=None)
    for batch, labels, ids in drifting(12):
        reference = again(torch.nn.functional.normalize(batch, dim=1), labels, ids)
    torch.testing.assert_close(reference.embeddings().norm(dim=1), torch.ones(40, dtype=torch.float64))


@pytest.mark.parametrize(
    ("noise", "process"),
    [(noise, process) for noise in ("constant", "sampler") for process in ("constant", "innovations")]
    + [("innovations", "innovations")],
)
@pytest.mark.parametrize("gain", ["shared", "dimension"])
@pytest.mark.parametrize("filter_", ["sigma", "variance"])
@pytest.mark.parametrize("anchor", ["state", "batch", "memory"])
def test_every_combination_of_options_stays_finite(
    anchor: str, filter_: str, gain: str, noise: str, process: str
) -> None:
    drift = {"kind": "axbn", "anchor": anchor, "filter": filter_, "gain": gain, "noise": noise, "process": process}
    bank = memory(drift)
    for batch, labels, ids in drifting(12):
        batch[:, 0] = 3.0  # a dimension that has collapsed
        reference = bank(batch, labels, ids)
    assert torch.isfinite(reference.embeddings()).all()
    assert bool(((bank.drift_state.gain >= 0) & (bank.drift_state.gain <= 1)).all())


def test_with_the_noise_of_the_sampler_a_batch_of_one_class_teaches_nothing_but_at_the_start() -> None:
    bank = memory({"kind": "axbn", "noise": "sampler"})
    for batch, labels, ids in drifting(6):
        bank(batch, labels, ids)
    before = bank.drift_moments.clone()
    bank(batch + 5, torch.zeros_like(labels), ids)
    assert torch.equal(bank.drift_moments, before)
    first = memory({"kind": "axbn", "noise": "sampler"})
    first(batch, torch.zeros_like(labels), ids)
    torch.testing.assert_close(first.drift_moments[0], batch.mean(0))


def test_more_classes_a_batch_and_faster_drift_give_a_larger_gain() -> None:
    def settled(speed: float, classes: int, **options: Any) -> float:
        bank = memory({"kind": "axbn", **options}, capacity=64)
        gains = []
        for batch, labels, ids in drifting(250, 32, classes=classes, speed=speed, stretch=0):
            bank(batch, labels, ids)
            gains.append(bank.drift_state.gain[0].mean().item())
        return sum(gains[100:]) / 150

    assert settled(0.0, 16) < 0.1
    assert settled(0.2, 16) > 0.4
    known = {"noise": "sampler", "process": "constant", "process_noise": 0.01}
    assert settled(0.1, 4, **known) < settled(0.1, 16, **known) - 0.05


def test_the_filter_is_nearer_to_the_population_than_batches_are() -> None:
    """The stream moves slowly; the mean of many batches around a step stands for the population."""
    stream = drifting(300, 16, classes=4, speed=0.02, stretch=0)
    policy, state = AdaptiveMomentMatching(), DriftState.empty(WIDTH, torch.float64)
    means, filtered = [], []
    for batch, labels, _ in stream:
        state = policy.update(state, batch_moments(batch, labels))
        means.append(batch.mean(0))
        filtered.append(state.moments[0])
    truth = torch.stack(means).unfold(0, 41, 1).mean(-1)
    own = (torch.stack(means)[20:-20] - truth).square().mean().sqrt()
    ours = (torch.stack(filtered)[20:-20] - truth).square().mean().sqrt()
    assert ours < 0.6 * own


def watched(stream: list[Tensor], **options: Any) -> DriftState:
    """Return the filter's state after batches whose means are `stream` and whose standard deviation is 1."""
    policy, state = AdaptiveMomentMatching(**options), DriftState.empty(stream[0].shape[-1], torch.float64)
    for mean in stream:
        state = policy.update(state, BatchMoments(torch.stack([mean, torch.ones_like(mean)])))
    return state


def walk(steps: int, process: float, observation: float) -> list[Tensor]:
    """Return noisy observations of 400 random walks, of the variances given."""
    source = torch.Generator().manual_seed(3)
    moved, noise = (torch.randn(steps, 400, generator=source, dtype=torch.float64) for _ in range(2))
    return list((process**0.5 * moved).cumsum(0) + observation**0.5 * noise)


@pytest.mark.parametrize(("process", "observation"), [(0.01, 0.3), (0.04, 0.04), (0.09, 0.001)])
def test_innovations_tell_both_noises_and_the_gain_is_the_best_one(process: float, observation: float) -> None:
    state = watched(walk(400, process, observation))
    known = {**CONSTANT, "process_noise": process, "observation_noise": observation}
    assert state.gain[0, 0].item() == pytest.approx(AdaptiveMomentMatching(**known).steady_gain(), abs=0.05)
    assert state.drift[0].item() == pytest.approx(process, rel=0.25)
    noise = state.evidence[1, 0, 0] - state.error[0, 0] - state.drift[0]
    assert noise.item() == pytest.approx(observation, rel=0.15, abs=0.005)


def test_drift_with_a_direction_is_followed_as_by_xbn() -> None:
    """Every batch confirms more than all of the last surprise: whatever the noise, waiting loses."""
    source = torch.Generator().manual_seed(4)
    steps = [0.5 * step + 0.1 * torch.randn(40, generator=source, dtype=torch.float64) for step in range(60)]
    assert bool((watched(steps).gain[0] == 1).all())


def test_without_drift_the_gain_falls_towards_zero() -> None:
    assert watched(walk(300, 0.0, 0.2)).gain[0, 0] < 0.06


def test_nothing_that_moves_is_xbn() -> None:
    state = watched([torch.ones(4, dtype=torch.float64)] * 5)
    assert bool((state.gain == 1).all())
    assert bool(torch.isfinite(state.evidence).all())


def test_a_filter_without_any_noise_is_refused() -> None:
    with pytest.raises(ValidationError, match="0/0"):
        AdaptiveMomentMatching(noise="constant", process="constant", process_noise=0, observation_noise=0)


def test_a_known_process_noise_beside_a_learned_observation_noise_is_refused() -> None:
    with pytest.raises(ValidationError, match="innovations tell both"):
        AdaptiveMomentMatching(process="constant")
