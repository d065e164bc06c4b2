"""`longview simulate --kind lifelong` writes a prepared data set, and the oracle beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from longview.data import HistoryBatches, PreparedData, TrainingBatches
from longview.data.simulator.lifelong import component_names, histories, predict, write_lifelong
from longview.data.simulator.lifelong.config import START
from longview.data.simulator.oracle import (
    Oracle,
    auc,
    expected_hits,
    expected_ndcg,
    normalised_entropy,
    oracle_metrics,
    score_candidates,
    world_of,
)
from longview.errors import InputError
from tests.data.simulator.lifelong.worlds import past_of, tiny

CONFIG = tiny(events_per_user=300, oracle_events=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_lifelong(CONFIG, tmp_path_factory.mktemp("lifelong") / "data")


def test_the_data_set_is_the_histories(data: PreparedData) -> None:
    made = histories(CONFIG)
    np.testing.assert_array_equal(data.offsets, made.offsets)
    np.testing.assert_array_equal(data.items, made.public_items)
    np.testing.assert_array_equal(data.timestamps, made.time)
    np.testing.assert_array_equal(data.actions, made.action)
    np.testing.assert_array_equal(data.strength("watch"), made.watch)
    assert data.meta.actions == ("view", "click", "like", "buy")
    assert data.meta.simulated
    assert "nothing here is real" in (Path(str(data.path)) / "card.md").read_text()


def test_equal_rules_write_equal_data(data: PreparedData, tmp_path: Path) -> None:
    again = write_lifelong(CONFIG, tmp_path / "again")
    other = write_lifelong(tiny(events_per_user=300, oracle_events=5, seed=1), tmp_path / "other")
    assert again.fingerprint == data.fingerprint != other.fingerprint
    assert (Path(str(data.path)) / "oracle.arrow").read_bytes() == (tmp_path / "again" / "oracle.arrow").read_bytes()


def test_items_say_when_they_were_there(data: PreparedData) -> None:
    born = data.item_table["born"].fill_null(0).to_numpy()
    died = data.item_table["died"].fill_null(1 << 60).to_numpy()
    assert data.timestamps is not None
    assert (data.timestamps >= born[data.items]).all()
    assert (data.timestamps < died[data.items]).all()
    assert data.timestamps.min() >= START
    assert data.item_table.num_rows == data.num_items
    assert data.item_table["category"].type == pa.list_(pa.string())


def test_models_can_train_on_it(data: PreparedData) -> None:
    batch = next(iter(TrainingBatches(data, max_length=50, batch_size=4).epoch(0)))
    assert batch.num_tokens == 200
    assert sum(part.num_sequences for _, part in HistoryBatches(data, data.split.test, max_length=50)) == CONFIG.users


def test_the_oracle_describes_the_newest_events_of_every_user(data: PreparedData) -> None:
    oracle = Oracle.open(str(data.path))
    assert len(oracle) == 5 * CONFIG.users
    assert oracle.windows == CONFIG.windows
    rows = oracle.column("row")
    np.testing.assert_array_equal(data.items[rows], oracle.column("item"))
    np.testing.assert_array_equal(oracle.select("test").column("row"), data.split.test.target)
    np.testing.assert_array_equal(oracle.select("validation").column("row"), data.split.validation.target)
    np.testing.assert_array_equal(rows - data.offsets[oracle.column("user")], oracle.column("position"))
    made = histories(CONFIG)
    for window in (None, *CONFIG.windows):
        found = predict(past_of(made), rows, window)
        np.testing.assert_array_equal(oracle.column("probability", window), found.probability)
        np.testing.assert_array_equal(oracle.column("tied", window), found.tied)
        np.testing.assert_allclose(oracle.column("click", window), found.chances[:, 0], rtol=1e-6)
    names = np.array(component_names(CONFIG))
    assert oracle.table["component"].to_pylist() == names[made.component[rows]].tolist()
    np.testing.assert_array_equal(oracle.column("distance"), made.distance[rows])


def test_metrics_rise_with_what_is_seen_and_add_up(data: PreparedData) -> None:
    found = oracle_metrics(str(data.path), "all", k=3)
    rows = found["windows"]
    assert list(rows) == ["64", "150", "all"]
    assert rows["64"]["log_likelihood"] < rows["150"]["log_likelihood"] < rows["all"]["log_likelihood"]
    assert rows["64"]["ndcg@3"] < rows["all"]["ndcg@3"]
    assert rows["all"]["ne_click"] < rows["64"]["ne_click"] < 1
    assert 0.5 < rows["64"]["auc_click"] < rows["all"]["auc_click"]
    for groups in (found["components"]["all"], found["distances"]["all"]):
        assert sum(group["share"] for group in groups.values()) == pytest.approx(1)
        mean = sum(group["share"] * group["hr@3"] for group in groups.values())
        assert mean == pytest.approx(rows["all"]["hr@3"])


def test_candidates_of_a_request_sum_to_one(data: PreparedData) -> None:
    catalogue = world_of(data)
    oracle = Oracle.open(str(data.path)).select("test")
    everything = np.arange(data.num_items)
    for user in range(5):
        position = int(oracle.column("position")[user])
        found = score_candidates(data, user, position, everything, catalogue=catalogue)
        assert found.probability.sum() == pytest.approx(1)
        assert found.probability[oracle.column("item")[user]] == pytest.approx(oracle.column("probability")[user])
        assert (found.chances[:, 0] >= found.chances[:, 1]).all()


def test_expected_metrics_are_the_mean_over_orders_of_the_ties() -> None:
    better, tied = np.array([0, 2, 3, 9]), np.array([1, 4, 2, 5])
    for k in (1, 3, 5):
        for b, t, hit, gain in zip(
            better, tied, expected_hits(better, tied, k), expected_ndcg(better, tied, k), strict=True
        ):
            ranks = np.arange(b + 1, b + t + 1)
            assert hit == pytest.approx((ranks <= k).mean())
            assert gain == pytest.approx(np.where(ranks <= k, 1 / np.log2(ranks + 1), 0).mean())


def test_entropy_and_auc_by_hand() -> None:
    label = np.array([0, 0, 1, 1])
    assert auc(label, np.array([0.1, 0.4, 0.35, 0.8])) == pytest.approx(0.75)
    assert auc(label, np.full(4, 0.5)) == pytest.approx(0.5)
    assert normalised_entropy(label, np.full(4, 0.5)) == pytest.approx(1)
    assert np.isnan(auc(np.ones(3), np.ones(3)))
    assert np.isnan(normalised_entropy(np.zeros(3), np.ones(3)))


def test_what_is_not_there_is_said(data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already exists"):
        write_lifelong(CONFIG, str(data.path))
    with pytest.raises(InputError, match="no oracle there"):
        Oracle.open(tmp_path)
    (tmp_path / "oracle.arrow").write_bytes(b"ARROW1 and then nothing")
    with pytest.raises(InputError, match="damaged"):
        Oracle.open(tmp_path)
    oracle = Oracle.open(str(data.path))
    with pytest.raises(InputError, match="has 64, 150; simulate it again"):
        oracle.column("probability", 99)
    with pytest.raises(InputError, match="choose test, validation or all"):
        oracle.select("tset")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="k=0"):
        oracle.metrics(k=0)
    with pytest.raises(InputError, match="no such event"):
        score_candidates(data, 0, 10_000, [1])
    with pytest.raises(InputError, match="sees at least 64 events"):
        score_candidates(data, 0, 3, [1], window=10)
    with pytest.raises(InputError, match="catalogue indices"):
        score_candidates(data, 0, 3, [data.num_items])
