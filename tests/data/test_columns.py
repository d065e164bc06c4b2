"""Columns: what was named, else what is well known, else what the values say."""

from __future__ import annotations

from pathlib import Path

import pytest

from longview.data.columns import Choice, Columns, choose_columns
from longview.data.readers import open_source
from longview.errors import InputError
from tests.data.logs import write


def columns(tmp_path: Path, text: str, name: str = "log.csv", **choice: object) -> Columns:
    return choose_columns(open_source(write(tmp_path / name, text)), Choice(**choice))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("user_id,item_id,timestamp", ("user_id", "item_id", "timestamp")),
        ("timestamp,movieId,userId", ("userId", "movieId", "timestamp")),
        ("User-ID;ISBN;Date", ("User-ID", "ISBN", "Date")),
        ("visitorid,extra,itemid,ts", ("visitorid", "itemid", "ts")),
        ("reviewerID,asin,unixReviewTime", ("reviewerID", "asin", "unixReviewTime")),
        ("customer_id,article_id,t_dat", ("customer_id", "article_id", "t_dat")),
        ("session_id,user_id,item_id,time", ("user_id", "item_id", "time")),
    ],
)
def test_well_known_names(tmp_path: Path, header: str, expected: tuple[str, str, str]) -> None:
    separator = ";" if ";" in header else ","
    values = {expected[0]: "7", expected[1]: "8", expected[2]: "2020-07-06"}
    row = separator.join(values.get(name, "9") for name in header.split(separator))
    found = columns(tmp_path, f"{header}\n{row}\n{row}\n")
    assert (found.user, found.item, found.time) == expected
    assert set(found.guessed) == {"user", "item", "time"}


def test_names_chosen_win_over_guesses(tmp_path: Path) -> None:
    text = "user_id,buyer,item_id,timestamp,day\n1,2,3,1600000000,1600000000\n"
    found = columns(tmp_path, text, user="buyer", time="day")
    assert (found.user, found.item, found.time, found.guessed) == ("buyer", "item_id", "day", ("item",))


def test_unknown_names_are_told_by_what_they_hold(tmp_path: Path) -> None:
    found = columns(tmp_path, "who,what,moment,cost\nx,y,1600000000,1.5\nx,z,1600000100,2.5\n")
    assert (found.user, found.item, found.time) == ("who", "what", "moment")
    found = columns(tmp_path, "moment,who,what\n2020-07-06,x,y\n2020-07-07,x,z\n")
    assert (found.user, found.item, found.time) == ("who", "what", "moment")


def test_a_log_without_header_is_read_by_position(tmp_path: Path) -> None:
    found = columns(tmp_path, "A1YJEY,7806397051,3.0,1391040000\nA60XNB,7806397051,3.0,1397779200\n")
    assert (found.user, found.item, found.time) == ("column_1", "column_2", "column_4")
    found = columns(tmp_path, "1 10\n1 11\n2 10\n", name="pairs.txt")
    assert (found.user, found.item, found.key) == ("column_1", "column_2", None)


def test_order_strengths_and_actions_are_guessed(tmp_path: Path) -> None:
    found = columns(tmp_path, "user_id,item_id,position,rating,event_type,is_click,price\n1,2,0,4.5,view,1,9\n")
    assert (found.order, found.strengths, found.actions) == ("position", ("rating",), ("event_type", "is_click"))


def test_columns_that_are_not_read_are_said(tmp_path: Path) -> None:
    found = columns(tmp_path, "row,user_id,item_id,timestamp,What\n1,2,3,1600000000,view\n")
    assert found.unused == ("row", "What")
    assert ("not used", "row, What", "--action or --strength keeps one") in found.describe()
    assert columns(tmp_path, "user_id,item_id,timestamp\n2,3,1600000000\n").describe()[-1][0] == "time"


def test_ignored_columns_are_not_guessed(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,rating,event\n1,2,1600000000,5,view\n"
    found = columns(tmp_path, text, ignore=("rating", "event", "timestamp"))
    assert (found.strengths, found.actions, found.time) == ((), (), None)


def test_recbole_types_may_be_left_out_or_given(tmp_path: Path) -> None:
    text = "u:token\ti:token\twhen:float\n1\t2\t1600000000\n"
    for user in ("u", "u:token"):
        found = columns(tmp_path, text, name="log.inter", user=user, item="i", time="when")
        assert (found.user, found.item, found.time) == ("u", "i", "when")


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (
            {"user": "usr_id"},
            "no column 'usr_id' \\(did you mean 'user_id'\\?\\); columns: user_id, item_id, timestamp",
        ),
        ({"actions": ("buy",)}, "no column 'buy'"),
        ({"ignore": ("buy",)}, "no column 'buy'"),
        ({"user": "item_id", "item": "item_id"}, "'item_id' is given two roles"),
        ({"time": "timestamp", "order": "item_id"}, "exclude each other"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, choice: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        columns(tmp_path, "user_id,item_id,timestamp\n1,2,1600000000\n", **choice)


def test_a_column_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"which column is the item; name it with --item. Columns: user_id, timestamp"):
        columns(tmp_path, "user_id,timestamp\n1,1600000000\n")
