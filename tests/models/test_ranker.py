"""The ranking model: no label of a candidate, no other candidate and no other user has a say in its score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longview.data.batches import JaggedBatch
from longview.data.dataset import PreparedData
from longview.data.labels import TaskConfig, resolve_tasks
from longview.data.requests import Candidates, Requests, candidates_of, request_batch, take
from longview.data.schema import Inputs, Schema
from longview.errors import InputError
from longview.models.heads import HeadConfig
from longview.models.layer_config import AttentionConfig
from longview.models.ranker import Ranker
from longview.models.retriever import RetrieverConfig
from longview.models.streams import StreamConfig
from longview.models.topology import TruncationConfig
from tests.ranking_log import write_ranking

TASKS = (TaskConfig(name="like", action="like"), TaskConfig(name="stars", strength="rating"))
BODIES: dict[str, dict[str, Any]] = {
    "full": {},
    "semi-local": {"attention": AttentionConfig(local_window=2, global_size=1)},
    "recent": {"attention": AttentionConfig(local_window=2, global_size=2, global_mode="recent")},
    "biased": {"attention": AttentionConfig(time_bias=True)},
    "truncated": {"truncation": TruncationConfig(length=3, layers=1)},
    "two stages": {"truncation": TruncationConfig(length=3, layers=1, targets="second")},
    "streams": {"streams": {"liked": StreamConfig(actions=("like",)), "bought": StreamConfig(actions=("buy",))}},
}
EMBEDDINGS: dict[str, dict[str, Any]] = {
    "merged": {"actions": "sum", "time_gaps": "previous"},
    "mlp and context": {
        "actions": "mlp",
        "action_at_targets": "unknown",
        "context": ("taste", "age"),
        "time_gaps": "newest",
        "positions": "start",
    },
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_ranking(tmp_path_factory.mktemp("ranker") / "shop")


class Case:
    """A model with random weights, and batches of the data it was made for."""

    def __init__(self, data: PreparedData, body: str, embedding: str) -> None:
        torch.manual_seed(0)
        config = RetrieverConfig(width=8, layers=2, max_length=9, embedding=EMBEDDINGS[embedding], **BODIES[body])
        self.data, self.config = data, config
        context = config.embedding.context
        self.schema = Schema.of(data, actions=True, strength_buckets=4, context=context, context_buckets=4)
        self.tasks = resolve_tasks(TASKS, data)
        self.model = Ranker(config, HeadConfig(), data.num_items, self.tasks, data.meta.actions, self.schema).eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))  # nothing is zero any more

    def batch(self, requests: Requests, candidates: Candidates | None = None) -> JaggedBatch:
        candidates = candidates or candidates_of(self.data, requests, self.tasks)
        return request_batch(self.data, requests, candidates, max_length=9, inputs=Inputs.of(self.schema, self.data))


@pytest.fixture(params=[(body, embedding) for body in BODIES for embedding in EMBEDDINGS], ids=str)
def case(request: pytest.FixtureRequest, shop: PreparedData) -> Case:
    return Case(shop, *request.param)


def test_flipping_labels_of_candidates_does_not_change_a_bit(case: Case, tmp_path: Path) -> None:
    requests = Requests.of(case.data, "test", 100)  # of one request a user, so that no candidate is history
    rows = np.concatenate([np.arange(a, b) for a, b in zip(requests.first, requests.last, strict=True)])

    def flip(events: dict[str, np.ndarray]) -> None:
        events["action"][rows] ^= 3
        events["strength_rating"][rows] = 7

    before = case.batch(requests)
    case.data = write_ranking(tmp_path / "flipped", change=flip)
    after = case.batch(requests)
    assert before.labels is not None
    assert after.labels is not None
    assert (before.labels != after.labels).any(1).all()
    assert torch.equal(case.model.predict(before), case.model.predict(after))


def test_what_a_batch_says_of_candidates_is_not_read(case: Case) -> None:
    batch = case.batch(Requests.of(case.data, "test", 4))
    assert batch.target_lengths is not None
    assert batch.actions is not None
    assert batch.strengths is not None
    ahead = torch.zeros(batch.num_tokens, dtype=torch.bool)
    for end, count in zip(batch.offsets[1:].tolist(), batch.target_lengths.tolist(), strict=True):
        ahead[end - count : end] = True
    actions, strengths = batch.actions.clone(), batch.strengths.clone()
    actions[ahead], strengths[ahead] = 3, 5.0
    assert torch.equal(
        case.model.predict(batch), case.model.predict(replace(batch, actions=actions, strengths=strengths))
    )


def test_history_actions_do_matter(case: Case) -> None:
    batch = case.batch(Requests.of(case.data, "test", 4))
    assert batch.actions is not None
    changed = case.model.predict(replace(batch, actions=batch.actions ^ 1))
    assert not torch.allclose(case.model.predict(batch), changed, atol=1e-4)


def test_a_candidate_scores_the_same_alone_and_among_others(case: Case) -> None:
    requests = Requests.of(case.data, "test", 4)
    together = case.model.predict(case.batch(requests))
    candidates = candidates_of(case.data, requests, case.tasks)
    for row in (0, 3, len(candidates) - 1):
        number = candidates.request[[row]]
        alone = Candidates(np.zeros(1, np.int64), candidates.items[[row]], candidates.labels[[row]])
        score = case.model.predict(case.batch(take(requests, number), alone))
        assert torch.allclose(score[0], together[row], atol=1e-5)


def test_order_of_candidates_is_theirs_alone(case: Case) -> None:
    requests = take(Requests.of(case.data, "test", 6), slice(0, 1))
    candidates = candidates_of(case.data, requests, case.tasks)
    order = np.arange(len(candidates))[::-1].copy()
    turned = Candidates(candidates.request, candidates.items[order], candidates.labels[order])
    scores = case.model.predict(case.batch(requests))
    assert torch.allclose(case.model.predict(case.batch(requests, turned)), scores[torch.from_numpy(order)], atol=1e-5)


def test_candidates_that_are_in_the_history_are_scored(case: Case) -> None:
    requests = take(Requests.of(case.data, "test", 1), slice(0, 1))
    again = Candidates(
        np.zeros(1, np.int64), case.data.items[requests.start].astype(np.int64), np.zeros((1, 2), np.float32)
    )
    assert case.model.predict(case.batch(requests, again)).isfinite().all()


def test_an_empty_history_is_scored_and_gives_gradients(case: Case) -> None:
    requests = Requests.of(case.data, "train", 3)
    first = take(requests, np.flatnonzero(requests.history_end == requests.start)[:3])
    outputs = case.model.outputs(case.batch(first))
    outputs.sum().backward()
    assert outputs.isfinite().all()
    gradients = [p.grad for p in case.model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_context_matters(shop: PreparedData) -> None:
    case = Case(shop, "full", "mlp and context")
    batch = case.batch(Requests.of(shop, "test", 4))
    assert batch.context is not None
    changed = case.model.predict(replace(batch, context=torch.zeros_like(batch.context)))
    assert not torch.allclose(case.model.predict(batch), changed, atol=1e-4)


class TestQueries:
    """The same body as a retriever: with context in front, rows of events stay rows of events."""

    def test_an_action_has_happened_by_the_time_of_its_query_and_of_no_earlier_one(self, shop: PreparedData) -> None:
        case = Case(shop, "full", "mlp and context")
        batch = case.batch(Requests.of(shop, "test", 1))
        history = JaggedBatch(
            torch.tensor([1, 2, 3, 4, 5]),
            torch.tensor([0, 3, 5]),
            timestamps=torch.tensor([10, 20, 30, 10, 20]),
            actions=torch.tensor([0, 1, 0, 2, 0]),
            strengths=torch.tensor([[1.0], [5], [2], [3], [4]]),
            context=None if batch.context is None else batch.context[:2],
        )
        assert history.actions is not None
        one = case.model(history)
        other = case.model(replace(history, actions=history.actions ^ torch.tensor([0, 2, 0, 0, 0])))
        assert one.shape == (5, 8)
        changed = (one - other).abs().amax(1) > 1e-6
        assert changed.tolist() == [False, True, True, False, False]

    def test_the_newest_query_is_the_user_vector(self, shop: PreparedData) -> None:
        case = Case(shop, "full", "mlp and context")
        model = Ranker(case.config, HeadConfig(), shop.num_items, case.tasks, (), case.schema, retrieves=True).eval()
        batch = JaggedBatch(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 3]))
        assert torch.allclose(model.user_vectors(batch), model(batch)[[1, 2]], atol=1e-5)

    def test_one_that_only_ranks_refuses(self, shop: PreparedData) -> None:
        case = Case(shop, "full", "merged")
        with pytest.raises(InputError, match="trained to rank candidates, not to find items"):
            case.model.user_vectors(JaggedBatch(torch.tensor([1]), torch.tensor([0, 1])))


class TestBadInput:
    def test_layers_without_a_place_for_candidates(self, shop: PreparedData) -> None:
        with pytest.raises(InputError, match="sasrec cannot rank"):
            Ranker(RetrieverConfig(kind="sasrec"), HeadConfig(), 3, resolve_tasks(TASKS, shop))

    @pytest.mark.parametrize("second_stage", [False, True])
    def test_a_bias_by_the_place_of_a_candidate(self, shop: PreparedData, second_stage: bool) -> None:
        biased = AttentionConfig(position_bias=True)
        parts: dict[str, Any] = {"attention": biased}
        if second_stage:
            parts = {"truncation": TruncationConfig(length=3, layers=1, attention=biased)}
        with pytest.raises(InputError, match="depend on their order"):
            Ranker(RetrieverConfig(**parts), HeadConfig(), 3, resolve_tasks(TASKS, shop))

    def test_no_tasks(self) -> None:
        with pytest.raises(InputError, match="at least one task"):
            Ranker(RetrieverConfig(), HeadConfig(), 3, ())

    def test_a_batch_without_candidates(self, shop: PreparedData) -> None:
        case = Case(shop, "full", "merged")
        with pytest.raises(InputError, match="no candidates to rank"):
            case.model.outputs(JaggedBatch(torch.tensor([1]), torch.tensor([0, 1]), actions=torch.tensor([0])))

    def test_a_schema_that_is_not_what_the_configuration_reads(self) -> None:
        build: Callable[..., Any] = RetrieverConfig(embedding={"actions": "sum"}).build
        with pytest.raises(InputError, match="has actions 'sum'"):
            build(5)
