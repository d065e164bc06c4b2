"""Requests: every event is a candidate once, and nothing of a request or after it is in its history."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longview.data.batches import JaggedBatch
from longview.data.dataset import PreparedData
from longview.data.labels import TaskConfig, labels_of
from longview.data.requests import Part, RequestBatches, Requests, candidates_of, request_batch, sample_items
from longview.data.schema import Inputs, Schema, training_events
from longview.errors import InputError
from tests.ranking_log import write_ranking

TASKS = [TaskConfig(name="like", action="like"), TaskConfig(name="stars", strength="rating")]
Kind = Literal["leave-last-out", "global-time"]


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreparedData]:
    folder = tmp_path_factory.mktemp("requests")
    kinds: tuple[Kind, ...] = ("leave-last-out", "global-time")
    return {kind: write_ranking(folder / kind, kind=kind) for kind in kinds}


@pytest.fixture
def shop(shops: dict[str, PreparedData]) -> PreparedData:
    return shops["global-time"]


def rows_of(requests: Requests) -> np.ndarray:
    return np.concatenate([np.arange(a, b) for a, b in zip(requests.first, requests.last, strict=True)])


def expected_rows(data: PreparedData, part: Part) -> np.ndarray:
    """The candidates of a part by the words of the split."""
    if part == "train":
        return training_events(data)
    if data.split.spec.kind == "leave-last-out":
        return (data.split.validation if part == "validation" else data.split.test).target
    assert data.timestamps is not None
    spec = data.split.spec
    after = data.timestamps > (spec.validation_after if part == "validation" else spec.test_after)
    return np.flatnonzero(after & (data.timestamps <= spec.test_after) if part == "validation" else after)


@pytest.mark.parametrize("kind", ["leave-last-out", "global-time"])
@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_every_event_of_a_part_is_a_candidate_once(
    shops: dict[str, PreparedData], kind: str, part: Part, size: int
) -> None:
    data = shops[kind]
    requests = Requests.of(data, part, size)
    assert np.array_equal(np.sort(rows_of(requests)), np.sort(expected_rows(data, part)))
    assert (requests.last - requests.first).max() <= size
    assert requests.num_candidates == len(expected_rows(data, part))


@pytest.mark.parametrize("kind", ["leave-last-out", "global-time"])
@pytest.mark.parametrize("part", ["train", "validation", "test"])
@given(size=st.integers(1, 7))
def test_the_history_is_all_that_is_strictly_earlier(
    shops: dict[str, PreparedData], kind: str, part: Part, size: int
) -> None:
    data = shops[kind]
    assert data.timestamps is not None
    requests = Requests.of(data, part, size)
    for user, start, end, first, last in zip(*vars(requests).values(), strict=True):
        assert start == data.offsets[user]
        assert start <= end <= first < last <= data.offsets[user + 1]
        own = np.arange(start, data.offsets[user + 1])
        assert np.array_equal(np.arange(start, end), own[data.timestamps[own] < data.timestamps[first]])


@given(data=st.data(), size=st.integers(1, 6))
def test_shifted_cuts_have_the_same_candidates(shops: dict[str, PreparedData], data: st.DataObject, size: int) -> None:
    shop = shops["global-time"]
    shift = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=shop.num_users, max_size=shop.num_users)))
    plain, moved = Requests.of(shop, "train", size), Requests.of(shop, "train", size, shift)
    assert np.array_equal(rows_of(plain), rows_of(moved))
    lengths = moved.last - moved.first
    assert lengths.min() >= 1
    assert lengths.max() <= size
    firsts = np.flatnonzero(np.diff(moved.users, prepend=-1))
    full = shop.split.train_end - shop.offsets[:-1]
    assert np.array_equal(lengths[firsts], np.minimum(size - shift, full)[moved.users[firsts]])


def test_without_times_the_history_is_all_that_came_before(shop: PreparedData) -> None:
    untimed = PreparedData(
        None,
        shop.meta.model_copy(
            update={"has_time": False, "split": shop.meta.split.model_copy(update={"kind": "leave-last-out"})}
        ),
        shop.events.drop_columns(["timestamp"]),
        shop.users,
        shop.item_table,
    )
    requests = Requests.of(untimed, "train", 3)
    assert np.array_equal(requests.history_end, requests.first)


def test_no_test_event_is_in_training(shops: dict[str, PreparedData]) -> None:
    for data in shops.values():
        train = rows_of(Requests.of(data, "train", 4))
        for part in ("validation", "test"):
            assert not np.intersect1d(train, rows_of(Requests.of(data, part, 4))).size


class TestBatch:
    def batch(self, data: PreparedData, *, sampled: int = 0, next_items: int = 0) -> tuple[JaggedBatch, Requests]:
        requests = Requests.of(data, "test", 3)
        drawn = sample_items(data, requests, sampled, np.random.default_rng(0))
        schema = Schema.of(data, actions=True, strength_buckets=4, context=("taste",), context_buckets=4)
        candidates = candidates_of(data, requests, TASKS, drawn)
        batch = request_batch(
            data, requests, candidates, max_length=4, inputs=Inputs.of(schema, data), next_items=next_items
        )
        return batch, requests

    def test_history_then_candidates_with_the_time_of_the_request_and_no_action(self, shop: PreparedData) -> None:
        batch, requests = self.batch(shop)
        assert shop.timestamps is not None
        assert batch.timestamps is not None
        assert batch.actions is not None
        assert batch.strengths is not None
        for n in range(len(requests)):
            begin, end = batch.offsets[n : n + 2].tolist()
            history = np.arange(max(requests.start[n], requests.history_end[n] - 4), requests.history_end[n])
            shown = np.arange(requests.first[n], requests.last[n])
            ahead = end - len(shown)
            assert batch.items[begin:end].tolist() == shop.items[np.concatenate([history, shown])].tolist()
            assert batch.timestamps[begin:ahead].tolist() == shop.timestamps[history].tolist()
            assert set(batch.timestamps[ahead:end].tolist()) == {shop.timestamps[shown[0]]}
            assert not batch.actions[ahead:end].any()
            assert batch.strengths[ahead:end].isnan().all()
        assert batch.labels is not None
        assert np.array_equal(batch.labels.numpy(), labels_of(TASKS, shop, rows_of(requests)), equal_nan=True)

    def test_labels_are_nowhere_in_the_input(self, tmp_path: Path, shop: PreparedData) -> None:
        """Whatever came of the candidates, the model is given the same."""
        requests = Requests.of(shop, "test", 100)  # the candidates of one request are in nobody's history

        def turn(events: dict[str, np.ndarray]) -> None:
            events["action"][rows_of(requests)] ^= 3
            events["strength_rating"][rows_of(requests)] = 2

        turned = write_ranking(tmp_path / "turned", change=turn)
        schema = Schema.of(shop, actions=True, strength_buckets=4, context=(), context_buckets=4)
        one, other = (
            request_batch(d, requests, candidates_of(d, requests, TASKS), max_length=9, inputs=Inputs.of(schema, d))
            for d in (shop, turned)
        )
        assert one.labels is not None
        assert other.labels is not None
        assert not torch.equal(one.labels[:, 0], other.labels[:, 0])
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor) and name != "labels":
                assert torch.equal(value.nan_to_num(-1), getattr(other, name).nan_to_num(-1)), name

    def test_sampled_candidates_come_last_and_nothing_happened_to_them(self, shop: PreparedData) -> None:
        batch, requests = self.batch(shop, sampled=2)
        assert batch.target_lengths is not None
        assert batch.labels is not None
        assert batch.target_lengths.tolist() == (requests.last - requests.first + 2).tolist()
        ends = batch.target_lengths.cumsum(0)
        for n in range(len(requests)):
            assert torch.equal(batch.labels[ends[n] - 2 : ends[n], 0], torch.zeros(2))
            assert batch.labels[ends[n] - 2 : ends[n], 1].isnan().all()

    def test_next_items_are_those_of_the_newest_events(self, shop: PreparedData) -> None:
        batch, requests = self.batch(shop, next_items=2)
        assert batch.targets is not None
        for n in range(len(requests)):
            begin, end = batch.offsets[n : n + 2].tolist()
            last = requests.history_end[n] - 1
            count = min(2, int(requests.history_end[n] - requests.start[n]), 4)
            wanted = [-1] * (end - begin)
            ahead = end - begin - int(requests.last[n] - requests.first[n])
            wanted[ahead - count : ahead] = shop.items[last - count + 2 : last + 2].tolist()
            assert batch.targets[begin:end].tolist() == wanted


class TestRequestBatches:
    def make(self, data: PreparedData, **settings: int | None) -> RequestBatches:
        return RequestBatches(data, TASKS, size=3, max_length=5, **{"batch_size": 4, "sampled": 1, **settings})

    def test_an_epoch_has_every_training_event_once(self, shop: PreparedData) -> None:
        batches = list(self.make(shop, sampled=0).epoch(0))
        assert len(batches) == self.make(shop).steps(0)
        assert sum(int(batch.target_lengths.sum()) for batch in batches) == len(training_events(shop))

    def test_it_resumes_at_any_step(self, shop: PreparedData) -> None:
        whole = list(self.make(shop).epoch(3))
        later = list(self.make(shop).epoch(3, first_step=2))
        for one, other in zip(whole[2:], later, strict=True):
            assert torch.equal(one.items, other.items), "sampled items included"
        assert not torch.equal(whole[0].items[:20], next(iter(self.make(shop).epoch(4))).items[:20])

    def test_a_token_budget_bounds_a_batch(self, shop: PreparedData) -> None:
        batches = list(self.make(shop, batch_size=None, token_budget=30).epoch(0))
        assert max(batch.num_tokens for batch in batches) <= 30


def test_a_part_without_events_is_refused(shop: PreparedData) -> None:
    split = shop.meta.split.model_copy(update={"test_after": 10**9, "validation_after": 10**9 - 1})
    late = PreparedData(None, shop.meta.model_copy(update={"split": split}), shop.events, shop.users, shop.item_table)
    with pytest.raises(InputError, match="no event to rank in test"):
        Requests.of(late, "test", 3)
