"""A batch seen by a policy: the graph of a GPU computes what the operations do, and nothing that is saved holds it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from longview.metric_learning import AdaptiveMomentMatching, DriftState
from longview.metric_learning.observe import SIGHTINGS, Observer, observe
from tests.metric_learning.helpers import drifting, memory

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
POLICY = AdaptiveMomentMatching()


def test_on_a_cpu_it_is_observe() -> None:
    state = DriftState.empty(6, torch.float64)
    values, labels, _ = drifting(1)[0]
    got, expected = Observer(POLICY, 1e-6)(values, labels, state), observe(POLICY, 1e-6, values, labels, state)
    assert all(torch.equal(one, other) for one, other in zip(got.state, expected.state, strict=True))
    assert torch.equal(got.stored, expected.stored)


@needs_gpu
@pytest.mark.parametrize("options", [{}, {"filter": "variance", "gain": "dimension"}, {"noise": "constant"}])
def test_the_graph_computes_the_same_bits(options: Any) -> None:
    policy = AdaptiveMomentMatching(**options)
    graphed, state = Observer(policy, 1e-6), DriftState.empty(6, torch.float32)
    state = DriftState._make([*(part.cuda() for part in state[:-1]), state.steps])
    for values, labels, _ in drifting(SIGHTINGS + 8):
        z, y = values.float().cuda(), labels.cuda()
        before = [part.clone() for part in state]
        expected, got = observe(policy, 1e-6, z, y, state), graphed(z, y, state)
        assert torch.equal(expected.own, got.own)
        assert torch.equal(expected.stored, got.stored)
        assert all(torch.equal(a, b) for a, b in zip(expected.state, got.state, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))
        state = got.state
    assert len(graphed._graphs) == 1


@needs_gpu
def test_a_memory_that_is_moved_goes_on() -> None:
    bank = memory({"kind": "axbn"}, storage="float32", moments="float32").cuda()
    for values, labels, ids in drifting(SIGHTINGS + 3):
        bank(values.float().cuda(), labels.cuda(), ids.cuda())
    assert bank.queue.cursor.device.type == "cpu"
    other = copy.deepcopy(bank).cpu()
    for values, labels, ids in drifting(3, seed=1):
        one, two = bank(values.float().cuda(), labels.cuda(), ids.cuda()), other(values.float(), labels, ids)
        torch.testing.assert_close(one.embeddings().cpu(), two.embeddings(), rtol=1e-4, atol=1e-5)


def test_graphs_are_neither_copied_nor_pickled() -> None:
    observer = Observer(POLICY, 1e-6)
    observer._graphs["a shape"] = object()  # type: ignore[assignment]
    assert copy.deepcopy(observer)._graphs == {}
    assert pickle.loads(pickle.dumps(observer))._graphs == {}
