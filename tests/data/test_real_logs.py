"""The public logs: the counts everybody knows, and fingerprints that results are compared under."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from longview.data import PreparedData
from longview.data.prepare import prepare
from tests.data.logs import histories

RealData = Callable[[str], Path]


def counts(data: PreparedData) -> tuple[int, int, int]:
    return data.num_users, data.num_items, data.num_events


@pytest.fixture(scope="module")
def movielens_1m(real_data: RealData, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare(
        real_data("ml-1m/sequences.csv.gz"),
        out=tmp_path_factory.mktemp("real") / "ml-1m",
        order="position",
        items=real_data("ml-1m/movies.dat"),
        users=real_data("ml-1m/users.dat"),
    )


def test_movielens_1m_in_its_canonical_order(movielens_1m: PreparedData) -> None:
    data = movielens_1m
    assert counts(data) == (6040, 3416, 999_611)
    assert data.fingerprint == "565da6528352045d"
    assert len(data.split.test) == len(data.split.validation) == 6040
    assert data.user_ids.ids.to_pylist() == [str(n) for n in range(1, 6041)]
    assert data.meta.card["merged_duplicates"] == data.meta.card["repeat_share"] == 0


def test_movielens_1m_sequences_are_those_of_the_file(movielens_1m: PreparedData, real_data: RealData) -> None:
    wanted: dict[str, list[str]] = {"1": [], "5988": [], "6040": []}
    with gzip.open(real_data("ml-1m/sequences.csv.gz"), "rt") as file:
        for row in csv.DictReader(file):
            if row["user_id"] in wanted:
                wanted[row["user_id"]].append(row["item_id"])
    found = histories(movielens_1m)
    assert {user: found[user] for user in wanted} == wanted


def test_movielens_1m_features_cover_the_log(movielens_1m: PreparedData) -> None:
    items = {row["id"]: row for row in movielens_1m.item_table.to_pylist()}
    assert items["1"] == {
        "id": "1",
        "title": "Toy Story (1995)",
        "category": ["Animation", "Children's", "Comedy"],
        "year": 1995,
    }
    assert items["73"]["title"] == "Misérables, Les (1995)"  # Latin-1
    assert movielens_1m.item_table["year"].null_count == 0
    card = movielens_1m.meta.card
    assert (card["item_features"]["missing"], card["item_features"]["unused"]) == (0, 467)
    assert movielens_1m.users.slice(0, 1).to_pylist()[0] | {"offset": 0} == {
        "id": "1",
        "offset": 0,
        "length": 53,
        "gender": "F",
        "age": 1,
        "occupation": 10,
        "zip_code": "48067",
    }


def test_amazon_beauty(real_data: RealData, tmp_path: Path) -> None:
    log = real_data("amazon-beauty/interactions.csv")
    by_time = prepare(log, out=tmp_path / "time")
    assert counts(by_time) == (22_363, 12_101, 198_502)
    assert (by_time.meta.split.kind, len(by_time.split.test)) == ("global-time", 6110)
    assert by_time.fingerprint == "66b75bc8016d263b"
    test = by_time.split.test
    trained = np.zeros(by_time.num_items, bool)
    for start, end in zip(by_time.offsets[:-1], by_time.split.train_end, strict=True):
        trained[by_time.items[start:end]] = True
    cold = ~trained[by_time.items[test.target]]
    assert int(cold.sum()) == 6110 - 4749
    assert by_time.meta.card["split"]["cold_test_share"] == pytest.approx(cold.mean())
    assert round(by_time.meta.card["tied_share"] * (198_502 - 22_363)) == 77_402
    last_out = prepare(log, out=tmp_path / "last", split="leave-last-out")
    assert len(last_out.split.test) == 22_363
    assert last_out.fingerprint == "878b54ca9fdf2732"
    assert np.array_equal(last_out.items, by_time.items)


def test_movielens_100k_in_recbole_files(real_data: RealData, tmp_path: Path) -> None:
    data = prepare(
        real_data("ml-100k/ml-100k.inter"),
        out=tmp_path / "data",
        items=real_data("ml-100k/ml-100k.item"),
        users=real_data("ml-100k/ml-100k.user"),
    )
    assert counts(data) == (943, 1682, 100_000)
    assert data.meta.columns == {"user": "user_id", "item": "item_id", "time": "timestamp"}
    assert data.meta.strengths == ("rating",)
    assert data.strength("rating").mean() == pytest.approx(3.52986, abs=1e-5)
    assert data.timestamps is not None
    for start, end in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        assert (np.diff(data.timestamps[start:end]) >= 0).all()
    first = data.item_table.slice(0, 1).to_pylist()[0]
    assert (first["title"], first["release_year"]) == ("Toy Story", "1995")
    assert first["category"] == ["Animation", "Children's", "Comedy"]
    assert data.users["occupation"].to_pylist()[:2] == ["technician", "other"]


def test_movielens_100k_core(real_data: RealData, tmp_path: Path) -> None:
    data = prepare(real_data("ml-100k/ml-100k.inter"), out=tmp_path / "data", min_user_events=50, min_item_events=50)
    assert np.diff(data.offsets).min() >= 50
    assert np.bincount(data.items).min() >= 50
    removed = data.meta.card["filters"]
    assert 100_000 - data.num_events == sum(entry["events"] for entry in removed)
