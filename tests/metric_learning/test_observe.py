"""A batch seen by a policy: the kernels tell what the operations do. Without a GPU they run in Triton's interpreter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from longview.metric_learning import AdaptiveMomentMatching, DriftState, MomentMatching, MovingAverage
from longview.metric_learning.drift import DriftPolicy, NoCorrection
from longview.metric_learning.observe import Observation, Rooms, filter_of, observe
from longview.ops.drift_filter import recipe_for, why_not
from tests.metric_learning.helpers import drifting, memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
POLICIES: dict[str, DriftPolicy] = {
    "xbn": MomentMatching(),
    "moving average": MovingAverage(rate=0.3),
    "moving average, slow, by its batch": MovingAverage(rate=0.6, anchor="batch"),
    "axbn": AdaptiveMomentMatching(),
    "axbn, variance, gain a dimension": AdaptiveMomentMatching(filter="variance", gain="dimension"),
    "axbn, noise of the sampler": AdaptiveMomentMatching(noise="sampler"),
    "axbn, noise of the sampler, variance, gain a dimension": AdaptiveMomentMatching(
        noise="sampler", filter="variance", gain="dimension"
    ),
    "axbn, constant noise": AdaptiveMomentMatching(noise="constant", process="constant"),
    "axbn, constant observation noise": AdaptiveMomentMatching(noise="constant"),
    "axbn, against the memory": AdaptiveMomentMatching(anchor="memory", filter="variance"),
}


def empty(width: int) -> DriftState:
    state = DriftState.empty(width, torch.float32)
    return DriftState._make([*(part.to(DEVICE) for part in state[:-1]), state.steps])


def flat(seen: Observation) -> list[torch.Tensor]:
    return [*seen.state, seen.own, seen.stored]


def assert_alike(got: Observation, expected: Observation) -> None:
    for one, other in zip(flat(got), flat(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("name", list(POLICIES))
def test_kernels_tell_what_the_operations_do(name: str) -> None:
    policy, state = POLICIES[name], empty(6)
    for step, (values, labels, _) in enumerate(drifting(5)):
        z, y = values.float().to(DEVICE), labels.to(DEVICE)
        before = [part.clone() for part in state]
        expected = observe(policy, 1e-6, z, y, state, kernels=False)
        if step:
            got = observe(policy, 1e-6, z, y, state, kernels=True)
            assert_alike(got, expected)
            again = observe(policy, 1e-6, z, y, state, kernels=True)
            assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(again), strict=True))
            assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))
        state = expected.state


@pytest.mark.parametrize("name", ["axbn", "axbn, noise of the sampler"])
@pytest.mark.parametrize(("rows", "width"), [(1, 3), (45, 20), (70, 33)])
def test_batches_of_any_size(rows: int, width: int, name: str) -> None:
    source = torch.Generator().manual_seed(rows)
    state = empty(width)
    for step in range(3):
        z = torch.randn(rows, width, generator=source).to(DEVICE)
        y = torch.randint(rows // 3 + 1, (rows,), generator=source).to(DEVICE)
        expected = observe(POLICIES[name], 1e-6, z, y, state, kernels=False)
        if step:
            assert_alike(observe(POLICIES[name], 1e-6, z, y, state, kernels=True), expected)
        state = expected.state


@pytest.mark.parametrize("kernels", [True, False])
def test_rows_in_the_dtype_of_the_memory_are_the_same_rows_rounded_once(kernels: bool) -> None:
    state = empty(6)
    for step, (values, labels, _) in enumerate(drifting(3)):
        z, y = values.float().to(DEVICE), labels.to(DEVICE)
        wide = observe(POLICIES["axbn"], 1e-6, z, y, state, kernels=kernels and step > 0)
        rooms = Rooms(torch.float16)
        halves = observe(POLICIES["axbn"], 1e-6, z, y, state, rooms=rooms, kernels=kernels and step > 0)
        assert halves.stored.dtype == torch.float16
        assert torch.equal(halves.stored, wide.stored.half())
        assert torch.equal(halves.state.moments, wide.state.moments)
        state = wide.state


def test_every_dtype_of_the_memory_has_launches_of_its_own() -> None:
    """They keep what was compiled, which here, where an interpreter takes its place, nobody would notice."""
    pytest.importorskip("triton")
    setting = filter_of(POLICIES["axbn"], 1e-6)
    assert setting is not None
    made = {recipe_for(setting, 4, 6, dtype, early=False) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    assert len(made) == 3


@pytest.mark.parametrize("filter_", ["sigma", "variance"])
def test_without_noise_the_kernels_of_axbn_are_those_of_xbn_bit_for_bit(filter_: Any) -> None:
    exact = AdaptiveMomentMatching(
        noise="constant", process="constant", observation_noise=0, process_noise=0.1, filter=filter_, anchor="batch"
    )
    state = empty(6)
    for step, (values, labels, _) in enumerate(drifting(4)):
        z, y = values.float().to(DEVICE), labels.to(DEVICE)
        seen = observe(exact, 1e-6, z, y, state, kernels=bool(step))
        if step:
            plain = observe(MomentMatching(), 1e-6, z, y, state, kernels=True)
            assert torch.equal(seen.state.moments, plain.state.moments)
            assert torch.equal(seen.stored, plain.stored)
        state = seen.state


def test_what_the_kernels_do_not_have_takes_the_operations() -> None:
    assert filter_of(NoCorrection(), 1e-6) is None
    assert "float64" in str(why_not(torch.zeros(2, 3, dtype=torch.float64)))
    assert "up to 2048" in str(why_not(torch.zeros(2, 4000)))


@needs_gpu
def test_a_memory_that_is_moved_goes_on() -> None:
    bank = memory({"kind": "axbn"}, storage="float32", moments="float32").cuda()
    for values, labels, ids in drifting(5):
        bank(values.float().cuda(), labels.cuda(), ids.cuda())
    assert bank.queue.cursor.device.type == "cpu"
    other = copy.deepcopy(bank).cpu()
    for values, labels, ids in drifting(3, seed=1):
        one, two = bank(values.float().cuda(), labels.cuda(), ids.cuda()), other(values.float(), labels, ids)
        torch.testing.assert_close(one.embeddings().cpu(), two.embeddings(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["xbn", "axbn", "axbn, against the memory"])
def test_in_rooms_a_state_stays_as_it_is_while_the_next_batch_is_observed(name: str) -> None:
    rooms, policy, state = Rooms(torch.float32), POLICIES[name], empty(6)
    places = set()
    for step, (values, labels, _) in enumerate(drifting(7)):
        rows = 4 if step == 5 else len(values)  # a batch of another size takes places of its own
        z, y = values[:rows].float().to(DEVICE), labels[:rows].to(DEVICE)
        kernels = step > 0
        expected = observe(policy, 1e-6, z, y, state, kernels=kernels)
        before = [part.clone() for part in state]
        got = observe(policy, 1e-6, z, y, state, rooms=rooms, kernels=kernels)
        assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(expected), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))
        state = got.state
        places |= {state.moments.data_ptr()} if 0 < step < 5 else set()
    assert len(places) == 2
