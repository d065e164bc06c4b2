"""The k-core: everybody left has enough events among those left, and what went is accounted for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longview.data.filters import Kept, filter_rows
from longview.data.spool import Spool
from longview.errors import InputError

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40)


def run(folder: Path, rows: list[tuple[int, int]], user: int, item: int) -> Kept:
    user_numbers = {name: n for n, name in enumerate(sorted({u for u, _ in rows}))}
    item_numbers = {name: n for n, name in enumerate(sorted({i for _, i in rows}))}
    log = Spool(folder / "rows", {"user": np.int32, "item": np.int32})
    log.append({"user": [user_numbers[u] for u, _ in rows], "item": [item_numbers[i] for _, i in rows]})
    return filter_rows(log, min_user_events=user, min_item_events=item, report=lambda *_: None)


def core(rows: list[tuple[int, int]], user: int, item: int) -> list[tuple[int, int]]:
    while True:
        users, items = [u for u, _ in rows], [i for _, i in rows]
        kept = [(u, i) for u, i in rows if users.count(u) >= user and items.count(i) >= item]
        if kept == rows:
            return rows
        rows = kept


@settings(max_examples=100, deadline=None)
@given(rows=pairs, user=st.integers(0, 4), item=st.integers(0, 4))
def test_what_is_left_is_the_core(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int]], user: int, item: int
) -> None:
    expected = core(rows, user, item)
    folder = tmp_path_factory.mktemp("core")
    if not expected:
        with pytest.raises(InputError, match=r"no event is left: min_(user|item)_events=\d removed the last ones"):
            run(folder, rows, user, item)
        return
    kept = run(folder, rows, user, item)
    users, items = np.array(sorted({u for u, _ in rows})), np.array(sorted({i for _, i in rows}))
    assert set(users[kept.users]) == {u for u, _ in expected}
    assert set(items[kept.items]) == {i for _, i in expected}
    assert kept.user_events.sum() == kept.item_events.sum() == len(expected)
    assert sum(r.events for r in kept.removed) == len(rows) - len(expected)
    assert sum(r.users for r in kept.removed) == len(users) - int(kept.users.sum())
    assert sum(r.items for r in kept.removed) == len(items) - int(kept.items.sum())


def test_each_filter_answers_for_what_it_removed(tmp_path: Path) -> None:
    rows = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 5), (3, 6)]
    kept = run(tmp_path, rows, 2, 2)
    by_user, by_item = kept.removed
    assert (by_item.filter, by_item.items, by_item.users, by_item.events) == ("min_item_events=2", 2, 1, 2)
    assert (by_user.filter, by_user.items, by_user.users, by_user.events) == ("min_user_events=2", 0, 1, 1)
    assert kept.rounds == 2  # items 5 and 6 go, then user 2 is short; then nothing changes


def test_no_filter_removes_nothing(tmp_path: Path) -> None:
    kept = run(tmp_path, [(0, 0), (1, 1)], 0, 1)
    assert kept.removed == ()
    assert kept.users.all()
    assert kept.items.all()


def test_the_filter_that_empties_the_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"min_item_events=9 removed.*the item with most events has 2.*--min-item-events"
    ):
        run(tmp_path, [(0, 0), (1, 0), (1, 1)], 0, 9)
