"""Scoring against states, in place and captured: what `Incremental.candidates` gives operation by operation.

Without a GPU the kernels run in Triton's interpreter, and a shape is launched where it would be captured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longview.data.batches import JaggedBatch
from longview.errors import InputError
from longview.models import hstu, scoring
from longview.models.hstu import HSTULayer
from longview.models.incremental import Incremental
from longview.models.retriever import Retriever
from longview.models.scoring import CandidateScorer
from longview.models.state import UserState
from longview.ops.hstu_layer import LayerSettings, why_off
from tests.models.histories import WINDOW, build, histories, piece, together
from tests.models.test_incremental_ranker import BODIES, CONTEXT, ranker

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
REASON = why_off(LayerSettings(heads=2, d_qk=8, d_v=8), 16, DEVICE, torch.float32)
KERNEL = pytest.mark.skipif(REASON is not None, reason=str(REASON))
GPU = pytest.mark.skipif(not CUDA, reason="needs a GPU")
INPUT = {"positions": "start", "time_gaps": "previous"}
TOPOLOGIES: dict[str, dict[str, Any]] = {
    "full": {},
    "prefix": {"attention": WINDOW},
    "per head": {"layer": {"norm": "head", "activation": "u", "scale_length": 1}, "attention": WINDOW},
    "truncated": {"attention": WINDOW, "truncation": {"length": 6, "layers": 2, "positions": True}},
    "two stages": {
        "attention": {**WINDOW, "target_scope": "full"},
        "truncation": {
            "length": 6,
            "layers": 2,
            "targets": "second",
            "attention": {"local_window": 2, "global_size": 2, "global_mode": "recent"},
        },
    },
    "streams": {
        "streams": {"consumption": {"actions": ["view", "none"]}, "engagement": {"actions": ["like", "buy"]}},
        "attention": WINDOW,
    },
}
PRODUCT = np.matmul
HISTORIES = histories([23, 1, 40, 7])


def model_of(name: str, **options: Any) -> Retriever:
    model = build(double=False, embedding=INPUT, **{**TOPOLOGIES[name], **options})
    for parameter in model.parameters():  # milder, so that float32 says something
        parameter.data.mul_(0.3)
    return model.to(DEVICE)


def asked(counts: list[int], seed: int = 5, which: list[JaggedBatch] | None = None) -> JaggedBatch:
    """Return so many candidates behind each history, a minute after its last event."""
    parts = []
    for history, drawn in zip(which or HISTORIES, histories(counts, seed=seed), strict=True):
        assert history.timestamps is not None
        parts.append(replace(drawn, timestamps=torch.full((drawn.num_tokens,), int(history.timestamps[-1]) + 60)))
    return together(parts).to(DEVICE)


def states(incremental: Incremental) -> list[UserState]:
    """Return states of the same users with shorter and with longer histories."""
    half = incremental.prefill(together([piece(h, 0, -(-h.num_tokens // 2)) for h in HISTORIES]).to(DEVICE))
    return [half, incremental.prefill(together(HISTORIES).to(DEVICE))]


def by_operation(incremental: Incremental, state: UserState, batch: JaggedBatch) -> Tensor:
    """Return `candidates` as it is where no kernel can do it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HSTULayer, "why_not_prepared", lambda *_: "as told")
        return incremental.candidates(state, batch)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= (2e-4 if CUDA else 2e-5) * expected.norm()


def assert_same(name: str, found: Tensor, expected: Tensor) -> None:
    """Demand the same bits but where streams are fused, by a product of the library, which looks at how many rows."""
    if name == "streams":
        assert_close(found, expected)
    else:
        assert torch.equal(found, expected)


def in_float64(a: Any, b: Any, dtype: Any = None) -> Any:
    """Return a @ b as a kernel's product is: the same bits wherever a row stands in a tile, not so with numpy's."""
    return PRODUCT(a.astype(np.float64), b.astype(np.float64)).astype(dtype or a.dtype)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the kernels run on the CPU, too, and what would be captured be launched there."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    if not CUDA:
        why_not_fused = HSTULayer.why_not_fused

        def as_on_a_gpu(layer: HSTULayer, x: Tensor) -> str | None:
            return why_not_fused(layer, SimpleNamespace(device=torch.device("cuda"), shape=x.shape, dtype=x.dtype))  # type: ignore[arg-type]

        monkeypatch.setattr(hstu, "why_off", lambda *_: None)
        monkeypatch.setattr(HSTULayer, "why_not_fused", as_on_a_gpu)
        monkeypatch.setattr(scoring, "why_no_graphs", lambda device: None)
        monkeypatch.setattr(scoring._Shape, "launch", lambda shape, stream: shape._body())
        monkeypatch.setattr(scoring._Shape, "replay", lambda shape, stream: shape._body())
        monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
        monkeypatch.setattr(np, "matmul", in_float64)  # which is what the interpreter multiplies with
    yield
    torch.set_float32_matmul_precision(before)


@KERNEL
@pytest.mark.usefixtures("kernels")
class TestInPlace:
    @pytest.mark.parametrize("name", TOPOLOGIES)
    def test_it_equals_the_form_that_goes_operation_by_operation(self, name: str) -> None:
        incremental, batch = Incremental(model_of(name)), asked([3, 0, 9, 2])
        state = states(incremental)[1]
        found = incremental.candidates(state, batch, micro_batch=5)
        assert_same(name, found, incremental.candidates(state, batch))
        assert_close(found, by_operation(incremental, state, batch))

    @pytest.mark.parametrize("name", ["full", "prefix", "truncated"])
    def test_appended_events_equal_those_appended_operation_by_operation(self, name: str) -> None:
        incremental = Incremental(model_of(name))
        half, _ = states(incremental)
        events = together([piece(h, -(-h.num_tokens // 2)) for h in HISTORIES]).to(DEVICE)
        found = incremental.append(half, events).tensors()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(HSTULayer, "why_not_prepared", lambda *_: "as told")
            expected = incremental.append(half, events).tensors()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(found[key].double(), value.double())

    def test_a_user_alone_has_the_bits_of_a_user_in_company(self) -> None:
        incremental, batch = Incremental(model_of("prefix")), asked([3, 0, 9, 2])
        state = states(incremental)[1]
        found = incremental.candidates(state, batch)
        for user, start, stop in ((0, 0, 3), (2, 3, 12), (3, 12, 14)):
            own = asked([[3, 0, 9, 2][user]], which=[HISTORIES[user]])
            own = replace(own, items=batch.items[start:stop])
            alone = incremental.candidates(state.take(torch.tensor([user], device=DEVICE)), own)
            assert torch.equal(alone, found[start:stop])

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"layer": {"output": "concat", "scale_length": 1}}, "output 'concat' is not fused"),
            ({"attention": {**WINDOW, "time_bias": True}}, "a relative bias is not fused"),
            ({"layer": {"precision": "fp8", "scale_length": 1}}, "precision fp8"),
        ],
    )
    def test_what_no_kernel_does_has_a_reason_and_the_same_results(self, options: dict[str, Any], words: str) -> None:
        incremental, batch = Incremental(model_of("full", **options)), asked([3, 0, 9, 2])
        state = states(incremental)[1]
        scorer = CandidateScorer(incremental)
        assert words in str(scorer.why_not_captured(state))
        assert torch.equal(scorer.candidates(state, batch), incremental.candidates(state, batch))


@KERNEL
@pytest.mark.usefixtures("kernels")
class TestScorer:
    @pytest.mark.parametrize("name", TOPOLOGIES)
    def test_other_candidates_and_states_give_what_launches_give(self, name: str) -> None:
        incremental = Incremental(model_of(name))
        scorer, (half, whole) = CandidateScorer(incremental), states(incremental)
        calls = [(whole, [3, 0, 9, 2]), (whole, [1, 1, 2, 2]), (half, [0, 9, 0, 1]), (whole, [5, 0, 0, 4])]
        for number, (state, counts) in enumerate([*calls, *calls] if CUDA else calls[1:]):
            batch = asked(counts, seed=number)
            assert_same(name, scorer.candidates(state, batch), incremental.candidates(state, batch))
        if CUDA:
            assert scorer.captured >= 1

    @pytest.mark.parametrize("body", BODIES)
    def test_predictions_of_a_ranker_with_context(self, body: str) -> None:
        model = ranker(BODIES[body]).to(DEVICE)
        incremental = Incremental(model)
        context = CONTEXT.to(DEVICE)
        state = incremental.prefill(replace(together(HISTORIES).to(DEVICE), context=context))
        scorer = CandidateScorer(incremental)
        for seed in range(3 if CUDA else 1):
            batch = asked([3, 0, 9, 2], seed=seed)
            assert_close(scorer.predict(state, batch), incremental.predict(state, batch))
            assert_same(body, scorer.candidates(state, batch), incremental.candidates(state, batch))

    def test_fewer_users_share_a_shape_and_results_are_the_callers(self) -> None:
        incremental = Incremental(model_of("prefix"))
        scorer, (_, whole) = CandidateScorer(incremental), states(incremental)
        first = scorer.candidates(whole, asked([3, 0, 9, 2]))
        kept = first.clone()
        three = whole.take(torch.tensor([2, 0, 3], device=DEVICE))
        batch = asked([4, 4, 1], which=[HISTORIES[user] for user in (2, 0, 3)])
        assert torch.equal(scorer.candidates(three, batch), incremental.candidates(three, batch))
        assert len(scorer._shapes) == 1
        assert torch.equal(first, kept)

    def test_the_oldest_shapes_go(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scoring, "MOST", 2)
        incremental = Incremental(model_of("prefix"))
        scorer, (_, whole) = CandidateScorer(incremental), states(incremental)
        for count in (5, 20, 40, 5, 5):
            batch = asked([count, 0, 0, 0])
            assert torch.equal(scorer.candidates(whole, batch), incremental.candidates(whole, batch))
        assert len(scorer._shapes) == 2

    def test_no_candidates_and_very_many_go_launch_by_launch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scoring, "LARGEST", 10)
        incremental = Incremental(model_of("prefix"))
        scorer, (_, whole) = CandidateScorer(incremental), states(incremental)
        for counts in ([0, 0, 0, 0], [20, 0, 1, 0]):
            assert scorer.candidates(whole, asked(counts)).shape == (sum(counts), 16)
        assert not scorer._shapes


class TestWithoutAGraph:
    def test_on_a_cpu_it_is_the_incremental_form_and_says_why(self) -> None:
        incremental = Incremental(build(embedding=INPUT, attention=WINDOW))
        state, batch = incremental.prefill(together(HISTORIES)), together(histories([3, 0, 9, 2], seed=5))
        scorer = CandidateScorer(incremental)
        assert scorer.why_not_captured(state) == "CUDA graphs need a GPU, and the state is on cpu"
        assert torch.equal(scorer.candidates(state, batch), incremental.candidates(state, batch))
        assert scorer.captured == 0

    def test_misuse_is_refused_as_there(self) -> None:
        incremental = Incremental(build(embedding=INPUT, attention=WINDOW))
        state = incremental.prefill(together(HISTORIES))
        scorer = CandidateScorer(incremental)
        with pytest.raises(InputError, match="1 users' events for a state of 4"):
            scorer.candidates(state, histories([3])[0])
        with pytest.raises(InputError, match="no head"):
            scorer.predict(state, together(histories([1, 1, 1, 1])))


@GPU
class TestOnTheDevice:
    """bfloat16, as a service runs it."""

    def setup_method(self) -> None:
        self.model = build(
            double=False,
            width=128,
            heads=2,
            residual="product",
            embedding=INPUT,
            attention={**WINDOW, "local_window": 40},
        ).cuda()
        for parameter in self.model.parameters():
            parameter.data.mul_(0.3)
        self.incremental = Incremental(self.model)

    def test_replays_have_the_bits_of_launches_under_autocast(self) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            half, whole = states(self.incremental)
            scorer = CandidateScorer(self.incremental)
            for seed, state in enumerate((half, whole, whole, half, whole)):
                batch = asked([30, 0, 190, 2], seed=seed)
                found = scorer.candidates(state, batch)
                assert found.dtype == torch.bfloat16
                assert torch.equal(found, self.incremental.candidates(state, batch))
                expected = by_operation(self.incremental, state, batch)
                assert (found - expected).float().norm() <= 5e-2 * expected.float().norm()
        assert scorer.captured == 1

    def test_nothing_waits_for_the_device(self) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            _, whole = states(self.incremental)
            scorer, batches = CandidateScorer(self.incremental), [asked([30, 0, 190, 2], seed=s) for s in range(4)]
            for batch in batches:
                scorer.candidates(whole, batch)
                self.incremental.candidates(whole, batch)
            torch.cuda.set_sync_debug_mode("error")
            try:
                found = [one.candidates(whole, batch) for batch in batches for one in (scorer, self.incremental)]
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert all(torch.equal(*pair) for pair in zip(found[::2], found[1::2], strict=True))
