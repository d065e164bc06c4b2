"""Baselines against examples worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from longview.data.batches import batch_of_sequences
from longview.data.dataset import PreparedData, write_prepared
from longview.data.meta import SplitSpec
from longview.errors import InputError, LongviewError
from longview.models.baselines import BASELINES, EASE, ItemKNN, Popularity, build, cooccurrence, item_knn
from longview.models.baselines.cooccurrence import Interactions, cooccurrence_blocks, distinct_bags
from longview.models.baselines.log import training_counts, training_rows
from longview.models.interface import ScoreRecommender, VectorRecommender

# Leave-last-out: the last two events of each user are held out, so users train on {0,1,2}, {0,1}, {1,2} and {3,3}.
SEQUENCES = [[0, 1, 2, 4, 4], [0, 1, 4, 4], [1, 2, 4, 4], [3, 3, 4, 4]]
USERS = [{0, 1, 2}, {0, 1}, {1, 2}, {3}]
NUM_ITEMS = 5


def prepare(path: Path, sequences: list[list[int]], num_items: int, times: list[list[int]] | None = None) -> Any:
    events: dict[str, Any] = {"item": np.concatenate([np.array(s, np.int32) for s in sequences])}
    if times is not None:
        events["timestamp"] = np.concatenate([np.array(t, np.int64) for t in times])
    users = pa.table({"id": [f"u{i}" for i in range(len(sequences))], "length": [len(s) for s in sequences]})
    items = pa.table({"id": [f"i{i}" for i in range(num_items)], "title": [""] * num_items})
    return write_prepared(path, name="small", events=events, users=users, items=items, split=SplitSpec())


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    return prepare(tmp_path / "data", SEQUENCES, NUM_ITEMS)  # type: ignore[no-any-return]


@pytest.fixture
def bigger(tmp_path: Path) -> PreparedData:
    generator = np.random.default_rng(0)
    sequences = [generator.integers(0, 30, generator.integers(1, 25)).tolist() for _ in range(80)]
    return prepare(tmp_path / "bigger", sequences, 31)  # type: ignore[no-any-return]


def matrix(data: PreparedData) -> torch.Tensor:
    """The users × items matrix of training, in float64."""
    rows, offsets = training_rows(data)
    dense = torch.zeros(data.num_users, data.num_items, dtype=torch.float64)
    for user in range(data.num_users):
        dense[user, torch.from_numpy(data.items[rows[offsets[user] : offsets[user + 1]]].astype(np.int64))] = 1
    return dense


class TestLog:
    def test_only_training_rows_count(self, data: PreparedData) -> None:
        assert training_counts(data).tolist() == [2, 3, 2, 2, 0]
        rows, offsets = training_rows(data)
        assert data.items[rows].tolist() == [0, 1, 2, 0, 1, 1, 2, 3, 3]
        assert offsets.tolist() == [0, 3, 5, 7, 9]

    def test_counting_in_chunks_is_counting(self, bigger: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = training_counts(bigger)
        monkeypatch.setattr("longview.models.baselines.log.CHUNK", 7)
        assert training_counts(bigger).tolist() == whole.tolist()
        assert whole.tolist() == np.bincount(bigger.items[training_rows(bigger)[0]], minlength=31).tolist()


class TestPopularity:
    def test_orders_items_by_training_events(self, data: PreparedData) -> None:
        scores = Popularity().fit(data).score(batch_of_sequences([[0], [1, 2]]))
        assert scores.tolist() == [[1, 2, 1, 1, 0]] * 2, "levels: 3 events, then 2, then none"

    def test_last_days_of_training_then_all_time(self, tmp_path: Path) -> None:
        day = 86_400
        times = [[0, day, 2 * day, 99 * day, 99 * day], [0, day, 20 * day, 20 * day], [20 * day] * 4, [14 * day] * 4]
        data = prepare(tmp_path / "timed", SEQUENCES, NUM_ITEMS, times)
        # Training ends on day 20; in the 7 days before it items 1 and 2 of the third user and 3, twice, of the fourth.
        scores = Popularity(days=7).fit(data).score(batch_of_sequences([[0]]))[0]
        assert scores.argsort(descending=True).tolist() == [3, 1, 2, 0, 4]
        narrow = Popularity(days=6).fit(data).score(batch_of_sequences([[0]]))[0]
        assert narrow.argsort(descending=True, stable=True).tolist() == [1, 2, 0, 3, 4], "day 14 is not after day 14"

    def test_a_window_needs_time(self, data: PreparedData) -> None:
        with pytest.raises(InputError, match="no time column, so there are no last 7 days"):
            Popularity(days=7).fit(data)
        with pytest.raises(InputError, match="above 0"):
            Popularity(days=0)


class TestCooccurrence:
    def test_counts_users_of_both(self, data: PreparedData) -> None:
        counts = torch.cat([block for _, block in cooccurrence_blocks(Interactions.of(data))])
        for i in range(NUM_ITEMS):
            for j in range(NUM_ITEMS):
                assert counts[i, j] == sum({i, j} <= had for had in USERS)

    @pytest.mark.parametrize("way", [cooccurrence._by_pairs, cooccurrence._by_products])
    @pytest.mark.parametrize("size", [1, 100, 1 << 20])
    def test_both_ways_and_all_blocks_agree(
        self, bigger: PreparedData, way: Any, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("BLOCK_CELLS", "DENSE_CELLS", "PAIRS_AT_ONCE"):
            monkeypatch.setattr(cooccurrence, name, size)
        blocks = list(way(Interactions.of(bigger)))
        assert [rows.start for rows, _ in blocks][1:] == [rows.stop for rows, _ in blocks][:-1]
        dense = matrix(bigger)
        assert torch.equal(torch.cat([block for _, block in blocks]).double(), dense.T @ dense)

    def test_a_repeat_in_a_history_counts_once(self) -> None:
        items, starts = distinct_bags(batch_of_sequences([[3, 1, 3], [2, 2]]), NUM_ITEMS)
        assert (items.tolist(), starts.tolist()) == ([1, 3, 2], [0, 2])


class TestItemKNN:
    def test_similarity_is_shrunk_cosine(self, data: PreparedData) -> None:
        scores = ItemKNN(neighbours=5, shrinkage=1.0).fit(data).score(batch_of_sequences([[0]]))[0]
        expected = [0, 2 / (6**0.5 + 1), 1 / (4**0.5 + 1), 0, 0]
        torch.testing.assert_close(scores, torch.tensor(expected))

    def test_score_adds_the_history_and_repeats_count_once(self, data: PreparedData) -> None:
        model = ItemKNN(neighbours=5, shrinkage=0.0).fit(data)
        one, two, both = model.score(batch_of_sequences([[0], [2], [0, 2, 2, 0]]))
        torch.testing.assert_close(both, one + two)

    def test_only_the_nearest_neighbours_of_a_candidate_count(self, data: PreparedData) -> None:
        model = ItemKNN(neighbours=1, shrinkage=0.0).fit(data)
        scores = model.score(batch_of_sequences([[0], [1], [2]]))
        assert (scores > 0).tolist() == [
            [False, True, False, False, False],  # item 0 is the one neighbour of 1 (0 and 2 tie, the lower wins)
            [True, False, True, False, False],
            [False, False, False, False, False],
        ]

    @pytest.mark.parametrize("terms", [1, 50, 1 << 24])
    def test_equals_the_dense_definition(
        self, bigger: PreparedData, terms: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(item_knn, "TERMS_AT_ONCE", terms)
        model = ItemKNN(neighbours=31, shrinkage=3.0).fit(bigger)
        dense = matrix(bigger)
        norms = dense.sum(0).sqrt()
        similarity = (dense.T @ dense / (norms[:, None] * norms + 3.0)).fill_diagonal_(0)
        histories = [[0, 4, 9], [7], [30, 2, 2, 11, 12, 13]]
        expected = torch.stack([similarity[sorted(set(h))].sum(0) for h in histories])
        torch.testing.assert_close(model.score(batch_of_sequences(histories)).double(), expected, rtol=1e-5, atol=1e-6)

    def test_settings_out_of_range(self) -> None:
        with pytest.raises(InputError, match="neighbours=0"):
            ItemKNN(neighbours=0)


class TestEASE:
    def test_equals_the_closed_form(self, bigger: PreparedData) -> None:
        dense = matrix(bigger)
        inverse = torch.linalg.inv(dense.T @ dense + 5 * torch.eye(31, dtype=torch.float64))
        weights = (-inverse / inverse.diagonal()).fill_diagonal_(0)
        model = EASE(regularisation=5).fit(bigger)
        torch.testing.assert_close(model.weights.double(), weights, rtol=1e-3, atol=1e-5)
        scores = model.score(batch_of_sequences([[3, 8, 3], [1]]))
        torch.testing.assert_close(scores[0].double(), weights[3] + weights[8], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(scores[1].double(), weights[1], rtol=1e-3, atol=1e-5)

    def test_minimises_its_objective(self, data: PreparedData) -> None:
        """No small change of the weights off the diagonal lowers ‖X − XB‖² + λ‖B‖²."""
        dense, weights = matrix(data), EASE(regularisation=2, dtype=torch.float64).fit(data).weights.double()
        weights.requires_grad_()
        (((dense - dense @ weights) ** 2).sum() + 2 * (weights**2).sum()).backward()
        assert weights.grad is not None
        off_diagonal = weights.grad - weights.grad.diagonal().diag()
        assert off_diagonal.abs().max() < 1e-5

    def test_too_large_a_catalogue_is_refused_with_the_cost(self, data: PreparedData) -> None:
        with pytest.raises(InputError, match=r"5 items are more than max_items=4.*raise max_items"):
            EASE(max_items=4).fit(data)

    def test_singular_is_an_error_not_rubbish(self, tmp_path: Path) -> None:
        data = prepare(tmp_path / "twins", [[0, 1, 2, 2]] * 4, 3)
        with pytest.raises(LongviewError, match="float64"):
            EASE(regularisation=1e-9).fit(data)
        with pytest.raises(InputError, match="above 0"):
            EASE(regularisation=0)


class TestRegistry:
    @pytest.mark.parametrize("name", BASELINES)
    def test_every_baseline_scores_directly(self, name: str) -> None:
        assert isinstance(build(name), ScoreRecommender)
        assert not isinstance(build(name), VectorRecommender)

    @pytest.mark.parametrize("name", ["popularity", "item-knn", "ease"])
    def test_scores_are_float32_and_cover_the_catalogue(self, name: str, data: PreparedData) -> None:
        scores = build(name).fit(data).score(batch_of_sequences([[0, 1], [3]]))
        assert (scores.dtype, scores.shape) == (torch.float32, (2, NUM_ITEMS))
        assert scores.isfinite().all()

    def test_settings_reach_the_baseline(self) -> None:
        assert build("item-knn", neighbours=7).neighbours == 7  # type: ignore[attr-defined]

    def test_unknown_names_and_settings_are_named(self) -> None:
        with pytest.raises(InputError, match=r"no baseline 'popularity7d' \(did you mean 'popularity-7d'\?\); there"):
            build("popularity7d")
        with pytest.raises(InputError, match=r"baseline ease: .*lambda_"):
            build("ease", lambda_=3)
