"""`longview prepare` as people meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longview.cli.prepare import prepare_command
from longview.data import PreparedData
from longview.errors import InputError
from tests.data.logs import LOG, write


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write(tmp_path / "log.csv", LOG)


def test_the_mapping_and_the_card_are_printed(tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_command([str(log)], tmp_path / "data")
    printed = capsys.readouterr()
    assert "columns: user = user_id, item = item_id, time = timestamp" in printed.err
    for words in ("users", "fingerprint", "tied times", "of targets cold", "longview train"):
        assert words in printed.out
    assert "\x1b[" not in printed.out + printed.err  # no terminal, no colours


def test_json_is_one_document_and_nothing_else(tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_command([str(log)], tmp_path / "data", json=True)
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    data = PreparedData.open(tmp_path / "data")
    assert document["fingerprint"] == data.fingerprint
    assert document["card"] == data.meta.card
    assert printed.err == ""


def test_every_option_reaches_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(
        tmp_path / "log.csv",
        "who,what,when,liked,seconds\na,x,1600000000,1,3\na,y,1600000001,0,4\nb,x,1600000002,1,5\nb,y,1600000003,1,1\n",
    )
    items = write(tmp_path / "items.csv", "what,label,kind\nx,X,k\ny,Y,k\n")
    prepare_command(
        [str(log)],
        tmp_path / "data",
        user="who",
        item="what",
        time="when",
        action=["liked"],
        strength=["seconds"],
        items=items,
        title="label",
        category="kind",
        split="leave-last-out",
        min_user_events=2,
        min_item_events=2,
        name="mine",
    )
    data = PreparedData.open(tmp_path / "data")
    assert (data.meta.name, data.meta.actions, data.meta.strengths) == ("mine", ("liked",), ("seconds",))
    assert data.item_table.to_pylist()[0] == {"id": "x", "title": "X", "category": ["k"]}
    assert data.meta.split.kind == "leave-last-out"
    assert "removed by min_user_events=2" in capsys.readouterr().out


def test_bad_input_raises_what_the_command_line_turns_into_exit_2(tmp_path: Path, log: Path) -> None:
    with pytest.raises(InputError, match=r"split: .*'leave-last-out' or 'global-time'.*got 'leave-one-out'"):
        prepare_command([str(log)], tmp_path / "data", split="leave-one-out")
    assert not (tmp_path / "data").exists()


def test_a_card_for_a_terminal(tmp_path: Path, log: Path) -> None:
    from io import StringIO

    from rich.console import Console

    from longview.cli.prepare import card_table
    from longview.data.card import DataCard
    from longview.data.prepare import prepare

    data = prepare(
        log, out=tmp_path / "data", items=write(tmp_path / "items.csv", "id,title\na,[red]A\n"), item="item_id"
    )
    page = StringIO()
    Console(file=page, width=100).print(card_table(DataCard.model_validate(data.meta.card)))
    assert "events of a user" in page.getvalue()
