"""On a GPU every topology gives what it gives on a CPU, training, serving and incremental form alike."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from longview.models.incremental import Incremental
from longview.models.retriever import Retriever
from tests.models.histories import build, histories, piece, together

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

INPUT = {"positions": "start", "time_gaps": "previous", "dropout": 0.0}
WINDOW = {"local_window": 48, "global_size": 20, "target_scope": "semi_local"}
STREAMS = {"consumption": {"actions": ["view", "none"]}, "engagement": {"actions": ["like", "buy"]}}
TOPOLOGIES = {
    "plain": {"attention": WINDOW},
    "truncated": {"attention": WINDOW, "truncation": {"length": 40, "layers": 1, "positions": True}},
    "two stages": {"attention": WINDOW, "truncation": {"length": 40, "layers": 1, "targets": "second"}},
    "streams": {"attention": WINDOW, "streams": {**STREAMS, "short": {"actions": ["buy"], "max_length": 9}}},
}
HISTORIES = histories([210, 1, 130, 64])


@pytest.fixture(autouse=True)
def _plain_float32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def model_of(name: str, device: str) -> Retriever:
    options = {"width": 64, "max_length": 256, "dropout": 0.0, "embedding": INPUT, **TOPOLOGIES[name]}
    model = build(double=False, **options)
    for parameter in model.parameters():  # milder, so that float32 says something
        parameter.data.mul_(0.3)
    return model.to(device)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found.cpu() - expected).norm() <= 2e-4 * expected.norm()


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_training_and_newest_vectors(name: str) -> None:
    batch, results = together(HISTORIES), []
    for device in ("cpu", "cuda"):
        model = model_of(name, device).train()
        queries = model.queries(batch.to(device))
        queries.vectors.square().sum().backward()
        gradients = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        vectors = model.eval().user_vectors(batch.to(device))
        results.append((queries.vectors.detach(), queries.rows, gradients, vectors))
    (expected, rows, gradients, vectors), (found, other_rows, other_gradients, other_vectors) = results
    assert_close(found, expected)
    assert_close(other_vectors, vectors)
    assert (rows is None) == (other_rows is None)
    assert rows is None or torch.equal(rows, other_rows.cpu())
    assert gradients.keys() == other_gradients.keys()
    for key, gradient in gradients.items():
        assert_close(other_gradients[key], gradient)


@pytest.mark.parametrize("name", ["plain", "truncated", "two stages"])
def test_incremental_form(name: str) -> None:
    model = model_of(name, "cuda")
    incremental = Incremental(model)
    state = incremental.prefill(together([piece(h, 0, h.num_tokens // 2) for h in HISTORIES]).to("cuda"))
    state = incremental.append(state, together([piece(h, h.num_tokens // 2) for h in HISTORIES]).to("cuda"))
    assert_close(incremental.vectors(state), model.user_vectors(together(HISTORIES).to("cuda")).cpu())
    asked = together(histories([70, 0, 3, 5], seed=9))
    on_cpu = Incremental(model_of(name, "cpu"))
    expected = on_cpu.candidates(on_cpu.prefill(together(HISTORIES)), asked)
    assert_close(incremental.candidates(state, asked.to("cuda"), micro_batch=32), expected)


@pytest.mark.parametrize("name", ["plain", "truncated"])
def test_a_forward_pass_does_not_wait_for_the_device(name: str) -> None:
    model = model_of(name, "cuda").train()
    batch = together(HISTORIES).to("cuda")
    model.queries(batch)  # kernels are compiled
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.queries(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [str(w.message) for w in caught if "synchroniz" in str(w.message)] == []
