"""Tables on a terminal: whole, however narrow it is."""

from __future__ import annotations

import sys

import pyarrow as pa
import pytest

import longview as lv
from longview.cli.output import emit_table
from longview.cli.reports import show_reports
from tests.cli.conftest import TrainedRun


def become_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Let what is stdout now be a terminal of `width` columns."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", "0")  # no escape sequences
    monkeypatch.setenv("COLUMNS", str(width))


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_column_is_lost_on_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    become_terminal(monkeypatch, width)
    table = pa.table({"name": ["hstu-small", "ease"]} | {f"metric_{n}@10": [0.5, 1234.25] for n in range(6)})
    emit_table(table)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ["hstu-small", "ease", *(f"metric_{n}@10" for n in range(6))])
    assert printed.count("1234.2500") == 6


def test_long_titles_fold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    become_terminal(monkeypatch, 40)
    emit_table(pa.table({"item": ["1"], "score": [0.5], "title": ["a title of many words that is long indeed"]}))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 40


def test_reports_fit_eighty_columns(trained: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    show_reports([lv.load(trained.run).evaluate()])
    table = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("name"))
    assert table.split() == ["name", "hr@10", "ndcg@10", "mrr", "coverage", "novelty", "popular", "new"]
    assert len(table.rstrip()) <= 80
