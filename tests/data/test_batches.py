"""Jagged batches: no padding, every budget kept, and the same order however often a run is resumed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from longview.data import HistoryBatches, JaggedBatch, PreparedData, TrainingBatches
from longview.data.batches import batch_of_sequences, jagged_rows
from longview.data.dataset import write_prepared
from longview.data.meta import SplitSpec
from longview.errors import InputError

LENGTHS = [1, 2, 3, 9, 20, 4]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Six users; every item occurs once, so that an item tells its row."""
    total = sum(LENGTHS)
    return write_prepared(
        tmp_path_factory.mktemp("data") / "set",
        name="small",
        events={
            "item": np.arange(total, dtype=np.int32),
            "timestamp": np.arange(total) * 10,
            "action": np.arange(total),
        },
        users=pa.table({"id": [f"u{n}" for n in range(len(LENGTHS))], "length": LENGTHS}),
        items=pa.table({"id": [f"i{n}" for n in range(total)]}),
        split=SplitSpec(kind="leave-last-out"),
        actions=[f"a{n}" for n in range(6)],
    )


def sequences(batch: JaggedBatch) -> list[list[int]]:
    edges = batch.offsets.tolist()
    return [batch.items[a:b].tolist() for a, b in pairwise(edges)]


def epoch(batches: TrainingBatches, number: int, first: int = 0) -> list[list[list[int]]]:
    return [sequences(batch) for batch in batches.epoch(number, first)]


@pytest.mark.parametrize("ties", [False, True])
def test_only_next_events_with_a_wanted_action_count(data: PreparedData, ties: bool) -> None:
    bits = 0b100  # an event's actions are the bits of its row, which is its item
    batches = TrainingBatches(data, max_length=50, target_actions=bits, shuffle_ties=ties)
    seen = 0
    for batch in batches.epoch(0):
        assert batch.targets is not None
        assert batch.counted is not None
        assert batch.counted.tolist() == [bool(target & bits) for target in batch.targets.tolist()]
        seen += int(batch.counted.sum())
    assert seen > 0
    assert next(iter(TrainingBatches(data, max_length=50).epoch(0))).counted is None


def test_training_sequences_stop_before_validation_and_target_the_next_item(data: PreparedData) -> None:
    (batch,) = TrainingBatches(data, max_length=100, batch_size=100).epoch(0)
    assert sorted(sequences(batch)) == [list(range(6, 12)), list(range(15, 32)), [35]]
    assert batch.targets is not None
    assert batch.targets.tolist() == (batch.items + 1).tolist()
    assert batch.timestamps is not None
    assert batch.timestamps.tolist() == (batch.items * 10).tolist()
    assert batch.actions is not None
    assert batch.actions.tolist() == batch.items.tolist()


def test_no_target_is_a_validation_or_test_target(data: PreparedData) -> None:
    held_out = {*data.items[data.split.validation.target].tolist(), *data.items[data.split.test.target].tolist()}
    for windows in ("latest", "random", "all", "shifted"):
        for batch in TrainingBatches(data, max_length=4, windows=windows).epoch(3):  # type: ignore[arg-type]
            assert batch.targets is not None
            assert not held_out & set(batch.targets.tolist())


def test_the_latest_window_is_the_newest_part(data: PreparedData) -> None:
    (batch,) = TrainingBatches(data, max_length=4, batch_size=100, windows="latest").epoch(0)
    assert sorted(sequences(batch)) == [[8, 9, 10, 11], [28, 29, 30, 31], [35]]


def test_all_windows_cover_every_event_once(data: PreparedData) -> None:
    (batch,) = TrainingBatches(data, max_length=4, batch_size=100, windows="all").epoch(0)
    assert sorted(batch.items.tolist()) == [*range(6, 12), *range(15, 32), 35]
    assert batch.max_length == 4


def test_shifted_windows_cover_every_event_once_and_are_cut_elsewhere_in_each_epoch(data: PreparedData) -> None:
    batches = TrainingBatches(data, max_length=4, batch_size=100, windows="shifted")
    cuts = set()
    for number in range(60):
        found = [sequence for batch in epoch(batches, number) for sequence in batch]
        assert sorted(item for sequence in found for item in sequence) == [*range(6, 12), *range(15, 32), 35]
        assert max(map(len, found)) <= 4
        assert [35] in found
        cuts |= {sequence[0] for sequence in found}
    assert cuts == {*range(6, 12), *range(15, 32), 35}


def test_random_windows_differ_between_epochs_and_stay_inside_their_user(data: PreparedData) -> None:
    batches = TrainingBatches(data, max_length=4, batch_size=100, windows="random")
    seen = {tuple(sequence) for number in range(150) for batch in epoch(batches, number) for sequence in batch}
    starts = {sequence[0] for sequence in seen if sequence[0] >= 15 and len(sequence) == 4}
    assert starts == set(range(15, 29))
    assert all(list(sequence) == list(range(sequence[0], sequence[0] + len(sequence))) for sequence in seen)


@pytest.mark.parametrize("windows", ["latest", "random", "all", "shifted"])
@pytest.mark.parametrize("limits", [{"batch_size": 2}, {"batch_size": None, "token_budget": 7}])
def test_an_epoch_resumes_at_any_step(data: PreparedData, windows: str, limits: dict[str, int]) -> None:
    def fresh() -> TrainingBatches:
        return TrainingBatches(data, max_length=4, windows=windows, seed=5, **limits)  # type: ignore[arg-type]

    whole = epoch(fresh(), 2)
    assert len(whole) == fresh().steps(2)
    for step in range(len(whole)):
        assert epoch(fresh(), 2, step) == whole[step:]
    assert epoch(fresh(), 1) != whole


def test_tied_events_are_shuffled_alike_after_resuming(tmp_path: Path) -> None:
    data = write_prepared(
        tmp_path / "ties",
        name="ties",
        events={"item": np.arange(24, dtype=np.int32), "timestamp": np.arange(24) // 6},
        users=pa.table({"id": ["a", "b"], "length": [12, 12]}),
        items=pa.table({"id": [f"i{n}" for n in range(24)]}),
        split=SplitSpec(kind="leave-last-out"),
    )

    def fresh() -> TrainingBatches:
        return TrainingBatches(data, max_length=50, batch_size=1, shuffle_ties=True)

    whole = epoch(fresh(), 0)
    assert epoch(fresh(), 0, 1) == whole[1:]
    assert epoch(fresh(), 1) != whole
    for (sequence,) in whole:
        first = sequence[0] // 12 * 12
        assert sorted(sequence[:6]) == list(range(first, first + 6))  # only within a tie


def test_token_budgets_are_kept_and_filled(data: PreparedData) -> None:
    batches = list(TrainingBatches(data, max_length=4, batch_size=None, token_budget=8, windows="all").epoch(0))
    sizes = [batch.num_tokens for batch in batches]
    assert max(sizes) <= 8
    assert sum(sizes) == 24
    for here, following in pairwise(batches):
        assert here.num_tokens + int(following.offsets[1]) > 8  # the next sequence would not have fitted


def test_a_sequence_longer_than_the_budget_is_a_batch_of_its_own(data: PreparedData) -> None:
    batches = list(TrainingBatches(data, max_length=100, batch_size=None, token_budget=3).epoch(0))
    assert sorted(batch.num_tokens for batch in batches) == [1, 6, 17]


def test_users_with_nothing_to_learn_from_are_named_as_the_problem(tmp_path: Path) -> None:
    data = write_prepared(
        tmp_path / "short",
        name="short",
        events={"item": np.zeros(2, np.int32)},
        users=pa.table({"id": ["a", "b"], "length": [1, 1]}),
        items=pa.table({"id": ["x"]}),
        split=SplitSpec(kind="leave-last-out"),
    )
    with pytest.raises(InputError, match="two training events"):
        TrainingBatches(data, max_length=4)


def test_batches_need_a_size_or_a_budget(data: PreparedData) -> None:
    with pytest.raises(InputError, match="batch_size or a token_budget"):
        TrainingBatches(data, max_length=4, batch_size=None)


def test_histories_end_before_their_target(data: PreparedData) -> None:
    for chosen in (data.split.validation, data.split.test):
        found = [
            s for _, batch in HistoryBatches(data, chosen, max_length=None, token_budget=8) for s in sequences(batch)
        ]
        assert found == [list(range(a, b)) for a, b in zip(chosen.start, chosen.target, strict=True)]


def test_histories_are_cut_to_the_newest_and_keep_user_order(data: PreparedData) -> None:
    test = data.split.test
    places, found = [], []
    for place, batch in HistoryBatches(data, test, max_length=3, token_budget=6):
        assert batch.num_tokens <= 6
        places += list(range(place.start, place.stop))
        found += sequences(batch)
    assert places == list(range(len(test)))
    assert found == [list(range(max(a, b - 3), b)) for a, b in zip(test.start, test.target, strict=True)]


def test_rows_of_empty_ranges() -> None:
    rows, offsets = jagged_rows(np.array([3, 7, 9]), np.array([5, 7, 10]))
    assert rows.tolist() == [3, 4, 9]
    assert offsets.tolist() == [0, 2, 2, 3]


def test_raw_sequences_are_cut_to_the_newest() -> None:
    batch = batch_of_sequences([[1, 2, 3], [], [4]], max_length=2)
    assert sequences(batch) == [[2, 3], [], [4]]
    assert batch.items.dtype == torch.int64
    assert batch.to("cpu").max_length == 2
