"""Ranks of targets among the whole catalogue."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from longview.data.batches import batch_of_sequences
from longview.data.dataset import PreparedData
from longview.data.splits import EvaluationSet
from longview.errors import InputError, LongviewError
from longview.evaluation import rank_targets, ranking

from .conftest import Fixed, Vectors


def by_hand(model: Vectors, data: PreparedData, chosen: EvaluationSet, *, exclude_seen: bool) -> list[float]:
    """The definition, one user and one item at a time."""
    ranks = []
    for start, target in zip(chosen.start, chosen.target, strict=True):
        history, wanted = data.items[start:target].tolist(), int(data.items[target])
        vector = sum(model.table.detach()[item] for item in history[-3:])
        scores = (model.table.detach() @ vector).tolist()  # type: ignore[operator]
        others = [i for i in range(data.num_items) if i != wanted and not (exclude_seen and i in history)]
        better = sum(scores[i] > scores[wanted] for i in others)
        tied = sum(scores[i] == scores[wanted] for i in others)
        ranks.append(1 + better + tied / 2)
    return ranks


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("held", [1, 100, 1 << 20])
def test_equals_the_definition(
    random_data: PreparedData, exclude_seen: bool, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "CPU_SCORES", held)
    model, chosen = Vectors(random_data.num_items).eval(), random_data.split.test
    ranks = rank_targets(model, random_data, chosen, exclude_seen=exclude_seen, cold_is_miss=False)
    assert ranks.rank.tolist() == by_hand(model, random_data, chosen, exclude_seen=exclude_seen)
    assert ranks.users.tolist() == chosen.users.tolist()
    assert ranks.history.tolist() == (chosen.target - chosen.start).tolist()


def test_scores_and_vectors_rank_alike(random_data: PreparedData) -> None:
    model, chosen = Vectors(random_data.num_items).eval(), random_data.split.test

    class Scores:
        def score(self, batch: Any) -> torch.Tensor:
            histories = [batch.items[a:b].tolist() for a, b in zip(batch.offsets, batch.offsets[1:], strict=False)]
            with torch.no_grad():
                return (
                    model.item_vectors() @ model.user_vectors(batch_of_sequences(histories, 3)).T
                ).T  # not contiguous

    one, other = rank_targets(model, random_data, chosen), rank_targets(Scores(), random_data, chosen)
    assert one.rank.tolist() == other.rank.tolist()


def test_a_model_that_scores_everything_alike_gets_the_middle_rank(make_data: Any) -> None:
    data = make_data([[0, 1, 2], [2, 1, 0]], num_items=11)
    ranks = rank_targets(Fixed([0.0] * 11), data, data.split.test, exclude_seen=False, cold_is_miss=False)
    assert ranks.rank.tolist() == [6.0, 6.0]
    ranks = rank_targets(Fixed([0.0] * 11), data, data.split.test, exclude_seen=True, cold_is_miss=False)
    assert ranks.rank.tolist() == [5.0, 5.0], "two of eleven are seen: the middle of nine"


def test_a_target_that_repeats_a_seen_item_stays_a_candidate(make_data: Any) -> None:
    data = make_data([[4, 0, 1, 4]], num_items=5)
    ranks = rank_targets(Fixed([3.0, 2.0, 1.0, 0.5, 2.5]), data, data.split.test, exclude_seen=True)
    assert ranks.rank.tolist() == [1.0], "items 0 and 1 are left out, 4 is the target"


def test_seen_means_the_whole_history_not_what_the_model_reads(make_data: Any) -> None:
    data = make_data([[0, 1, 2, 3, 4, 5]], num_items=7)
    assert Vectors.max_length < 5
    model = Vectors(7).eval()
    with torch.no_grad():
        model.table.fill_(1.0)
    ranks = rank_targets(model, data, data.split.test, cold_is_miss=False)
    assert ranks.rank.tolist() == [1.5], "all scores tie; only items 5 and 6 are candidates"


def test_a_cold_target_is_a_miss_unless_told_otherwise(make_data: Any) -> None:
    data = make_data([[0, 1, 2], [1, 0, 1]], num_items=3)  # item 2 is only ever a test target
    best_last = Fixed([0.0, 1.0, 2.0])
    ranks = rank_targets(best_last, data, data.split.test)
    assert ranks.cold.tolist() == [True, False]
    assert ranks.rank[0] == math.inf
    assert rank_targets(best_last, data, data.split.test, cold_is_miss=False).rank[0] == 1


def test_lists_are_the_best_unseen_items(make_data: Any) -> None:
    data = make_data([[0, 1, 2], [1, 0, 2]], num_items=4)
    ranks = rank_targets(Fixed([4.0, 3.0, 2.0, 1.0]), data, data.split.test, list_length=10)
    assert ranks.lists is not None
    assert ranks.lists.tolist() == [[2, 3, -1, -1]] * 2, "a list is never longer than the catalogue"


def test_an_empty_evaluation_set_is_refused(make_data: Any) -> None:
    data = make_data([[0], [1]], num_items=2)
    with pytest.raises(InputError, match="no user to evaluate"):
        rank_targets(Fixed([0.0, 1.0]), data, data.split.test)


def test_scores_that_are_not_numbers_fail_instead_of_ranking_first(make_data: Any) -> None:
    data = make_data([[0, 1, 2], [2, 1, 0]], num_items=3)
    with pytest.raises(LongviewError, match="NaN"):
        rank_targets(Fixed([0.0, math.nan, 1.0]), data, data.split.test)


def test_the_model_is_left_in_the_mode_it_was_in(random_data: PreparedData) -> None:
    model = Vectors(random_data.num_items).train()
    rank_targets(model, random_data, random_data.split.test)
    assert model.training
    assert not np.isnan(rank_targets(model.eval(), random_data, random_data.split.test).rank).any()
    assert not model.training


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_gives_the_ranks_of_the_cpu(random_data: PreparedData) -> None:
    model, chosen = Vectors(random_data.num_items).eval(), random_data.split.test
    here = rank_targets(model, random_data, chosen, list_length=5)
    there = rank_targets(model.cuda(), random_data, chosen, list_length=5)
    assert here.rank.tolist() == there.rank.tolist()
    assert here.lists is not None
    assert there.lists is not None
    assert here.lists.tolist() == there.lists.tolist()
