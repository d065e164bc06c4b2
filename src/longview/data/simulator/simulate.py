"""From visits to events: which item is touched, and what the user does with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longview.data.simulator.catalogue import BornSampler, Catalogue, item_names, make_catalogue, user_names
from longview.data.simulator.config import SimulationConfig
from longview.data.simulator.sessions import Timeline, make_timeline

Ints = npt.NDArray[np.int64]

IN_STYLE, IN_CATEGORY = 0.75, 0.17  # where an event's item comes from; the rest is the whole catalogue
REDRAWS = 3  # times an item the user has already met is drawn anew, so that some repeats remain
COMPANION = 0.25  # share of events that move on to the companion of the item before
COUNTRIES = ("DE", "FR", "JP", "BR", "KE", "CA")
ACTIONS = ("like", "cart", "buy")


@dataclass(frozen=True)
class Simulation:
    """A simulated log.

    `events`: user_id, item_id, timestamp (seconds), like, cart, buy (0 or 1), dwell (seconds); in order of time.
    Every row is a view; the action columns say what else happened.
    `items`: item_id, title, category, style, brand, price, born (seconds).
    `users`: user_id, country.
    """

    config: SimulationConfig
    events: pa.Table
    items: pa.Table
    users: pa.Table


def simulate(config: SimulationConfig | None = None) -> Simulation:
    """Return the log that `config` describes; equal configs give equal logs.

    Example:
        >>> log = simulate(SimulationConfig(users=10, items=50, max_history=20, seed=1))
        >>> log.events.num_rows > 50, log.items.num_rows
        (True, 50)
    """
    config = config or SimulationConfig()
    generator = np.random.default_rng(config.seed)
    catalogue = make_catalogue(config, generator)
    timeline = make_timeline(config, catalogue, generator)
    items = _choose_items(config, catalogue, timeline, generator)
    events = _events(catalogue, timeline, items, config.users, generator)
    users = pa.table(
        {
            "user_id": user_names(config.users),
            "country": pa.array(np.array(COUNTRIES)[generator.integers(len(COUNTRIES), size=config.users)]),
        }
    )
    return Simulation(config, events, catalogue.table(), users)


def _choose_items(
    config: SimulationConfig, catalogue: Catalogue, timeline: Timeline, generator: np.random.Generator
) -> Ints:
    """Return the item of every event, always one already born, and mostly one new to the user."""
    cell, anywhere = timeline.category * config.num_styles + timeline.style, np.zeros_like(timeline.category)
    sources = [
        (IN_STYLE, cell, BornSampler(catalogue.cell, catalogue.birth, catalogue.appeal)),
        (IN_CATEGORY, timeline.category, BornSampler(catalogue.category, catalogue.birth, catalogue.appeal)),
        (1.0, anywhere, BornSampler(np.zeros_like(catalogue.category), catalogue.birth, catalogue.appeal)),
    ]
    items = np.full(len(timeline.user), -1, np.int64)
    again = np.arange(len(items))
    for _ in range(1 + REDRAWS):
        source, items[again], limit = generator.random(len(again)), -1, 0.0
        for share, group, sampler in sources:
            limit += share
            rows = again[(source < limit) & (items[again] < 0)]
            items[rows] = sampler.draw(group[rows], timeline.time[rows], generator.random(len(rows)))
        again = _repeated(timeline.user * config.items + items)
    follows = (generator.random(len(items)) < COMPANION) & ~timeline.first
    return _follow(items, follows, catalogue, timeline)


def _repeated(keys: Ints) -> Ints:
    """Return the rows whose key stood in an earlier row."""
    order = np.argsort(keys, kind="stable")
    return np.sort(order[1:][keys[order][1:] == keys[order][:-1]])


def _follow(items: Ints, follows: npt.NDArray[np.bool_], catalogue: Catalogue, timeline: Timeline) -> Ints:
    """Replace items where `follows` by the companion of the event before, one step of all runs at a time."""
    rows = np.flatnonzero(follows)
    while len(rows):
        ready = rows[~follows[rows - 1]]
        next_item = catalogue.companion[items[ready - 1]]
        born = catalogue.birth[next_item] <= timeline.time[ready]
        items[ready] = np.where(born, next_item, items[ready])
        follows[ready] = False
        rows = rows[follows[rows]]
    return items


def _events(
    catalogue: Catalogue, timeline: Timeline, items: Ints, num_users: int, generator: np.random.Generator
) -> pa.Table:
    count = len(items)
    on_taste = (catalogue.category[items] == timeline.category).astype(float)
    like = generator.random(count) < 0.05 + 0.15 * on_taste
    cart = generator.random(count) < 0.03 + 0.07 * on_taste + 0.15 * like
    buy = cart & (generator.random(count) < 0.4)
    dwell = np.round(generator.gamma(2.0, 10.0, count) * (1 + like + 2 * cart), 1)
    columns = {
        "user_id": user_names(num_users).take(pa.array(timeline.user)),
        "item_id": item_names(len(catalogue.category)).take(pa.array(items)),
        "timestamp": pa.array(timeline.time),
        **{name: pa.array(done.astype(np.int8)) for name, done in zip(ACTIONS, (like, cart, buy), strict=True)},
        "dwell": pa.array(dwell.astype(np.float32)),
    }
    order = np.argsort(timeline.time, kind="stable")
    return pa.table(columns).take(pa.array(order))
