"""The simulated log keeps its promises: seeded, born before seen, and long-range tastes that predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from longview.data.simulator import Simulation, SimulationConfig, simulate, write_simulation
from longview.data.simulator.catalogue import BornSampler
from longview.errors import InputError

DAY = 86_400


@pytest.fixture(scope="module")
def log() -> Simulation:
    return simulate(SimulationConfig(users=800, items=600, max_history=160, seed=3))


def columns(log: Simulation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User number, item number and time of every event, sorted by user and then time."""
    user = pc.index_in(log.events["user_id"], log.users["user_id"].combine_chunks()).to_numpy()
    item = pc.index_in(log.events["item_id"], log.items["item_id"].combine_chunks()).to_numpy()
    order = np.argsort(user, kind="stable")
    return user[order], item[order], log.events["timestamp"].to_numpy()[order]


def test_equal_settings_give_equal_logs_and_another_seed_another_log() -> None:
    first, again, other = (simulate(SimulationConfig(users=30, items=90, seed=seed)) for seed in (1, 1, 2))
    assert first.events.equals(again.events)
    assert first.items.equals(again.items)
    assert first.users.equals(again.users)
    assert not first.events.equals(other.events)


def test_nobody_meets_an_item_before_it_is_born(log: Simulation) -> None:
    _, item, time = columns(log)
    born = log.items["born"].to_numpy()
    assert (time >= born[item]).all()
    assert (born > born.min()).mean() > 0.3


def test_some_items_are_cold_when_a_time_split_stops_training(log: Simulation) -> None:
    _, item, time = columns(log)
    cut = np.quantile(time, 0.81)
    late = set(item[time > cut]) - set(item[time <= cut])
    assert late


def test_popularity_is_skewed(log: Simulation) -> None:
    _, item, _ = columns(log)
    counts = np.sort(np.bincount(item, minlength=600))[::-1]
    assert counts[:60].sum() > 0.3 * counts.sum()


def test_histories_are_in_time_order_and_within_the_longest(log: Simulation) -> None:
    user, _, time = columns(log)
    lengths = np.bincount(user, minlength=800)
    assert lengths.min() >= 2
    assert lengths.max() <= 160
    assert (np.diff(log.events["timestamp"].to_numpy()) >= 0).all()
    assert time.max() - time.min() < 730 * DAY


def test_visits_are_short_and_gaps_between_them_long(log: Simulation) -> None:
    user, _, time = columns(log)
    gap = np.diff(time)[user[1:] == user[:-1]]
    assert np.quantile(gap, 0.5) < 600
    assert np.quantile(gap, 0.95) > 5 * DAY


def test_taste_of_long_ago_predicts_the_next_visit_beyond_the_recent_events(log: Simulation) -> None:
    """At the first event of a visit, categories last seen more than 20 events ago beat equally many others."""
    user, item, time = columns(log)
    category = np.unique(log.items["category"].to_pylist(), return_inverse=True)[1][item]
    old_hits = old_size = new_hits = new_size = 0
    for at in np.flatnonzero((user[1:] == user[:-1]) & (np.diff(time) > DAY)) + 1:
        begin = np.searchsorted(user, user[at])
        if at - begin < 60:
            continue
        seen = np.bincount(category[begin : at - 20], minlength=category.max() + 1)
        recent = np.bincount(category[at - 20 : at], minlength=category.max() + 1) > 0
        old, new = (seen >= 3) & ~recent, (seen == 0) & ~recent
        old_hits, old_size = old_hits + old[category[at]], old_size + old.sum()
        new_hits, new_size = new_hits + new[category[at]], new_size + new.sum()
    assert old_size > 1_000
    assert old_hits / old_size > 4 * new_hits / new_size
    assert old_hits / old_size > 1.5 / (category.max() + 1)  # and well above chance


def test_actions_build_on_each_other(log: Simulation) -> None:
    like, cart, buy = (log.events[name].to_numpy().astype(bool) for name in ("like", "cart", "buy"))
    assert cart[buy].all()
    assert 0 < buy.mean() < cart.mean() < like.mean() < 0.5
    assert cart[like].mean() > cart[~like].mean()
    assert log.events["dwell"].to_numpy()[cart].mean() > log.events["dwell"].to_numpy()[~cart].mean()


@pytest.mark.parametrize("size", [(1, 1, 2), (3, 2, 5), (5, 25, 400)])
def test_the_smallest_shops_work(size: tuple[int, int, int]) -> None:
    users, items, longest = size
    log = simulate(SimulationConfig(users=users, items=items, max_history=longest))
    assert pc.count_distinct(log.events["user_id"]).as_py() == users
    assert log.items.num_rows == items


def test_a_draw_follows_appeal_among_the_born_of_the_group() -> None:
    group = np.array([0, 0, 0, 1])
    birth = np.array([0, 0, 10, 0])
    sampler = BornSampler(group, birth, np.array([1.0, 3.0, 4.0, 1.0]))
    uniform = (np.arange(8_000) + 0.5) / 8_000
    early = sampler.draw(np.zeros(8_000, int), np.full(8_000, 9), uniform)
    late = sampler.draw(np.zeros(8_000, int), np.full(8_000, 10), uniform)
    np.testing.assert_array_equal(np.bincount(early, minlength=4), [2_000, 6_000, 0, 0])
    np.testing.assert_array_equal(np.bincount(late, minlength=4), [1_000, 3_000, 4_000, 0])
    assert sampler.draw(np.array([2]), np.array([50]), np.array([0.5])).tolist() == [-1]


def test_files_say_that_they_are_simulated(tmp_path: Path) -> None:
    log = simulate(SimulationConfig(users=20, items=40, max_history=30))
    target = write_simulation(log, tmp_path / "shop")
    assert sorted(p.name for p in target.iterdir()) == ["README.md", "events.parquet", "items.csv", "users.csv"]
    assert "simulated" in (target / "README.md").read_text()
    assert pq.read_table(target / "events.parquet").equals(log.events)
    assert pa_csv.read_csv(target / "items.csv")["title"].to_pylist() == log.items["title"].to_pylist()
    with pytest.raises(InputError, match="already exists"):
        write_simulation(log, target)
