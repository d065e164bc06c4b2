"""What a run shows, on a terminal and elsewhere."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from longview.training import progress
from longview.training.progress import LiveProgress, PlainProgress, Status, make_progress, memory_in_use

STATUS = Status(
    epoch=2,
    epochs=9,
    step=3,
    steps=48,
    loss=5.25,
    events_per_second=61_000,
    epoch_seconds_left=9,
    seconds_left=95,
    memory=2**30,
    metric="ndcg@10",
    last=0.15,
    best=0.17,
)


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=160)


def output(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def test_a_status_has_everything_in_one_line() -> None:
    assert STATUS.text() == (
        "loss 5.2500, 61,000 events/s, epoch 9 s, all ≤ 1:35 min, 1.00 GiB, ndcg@10 0.1500 (best 0.1700)"
    )
    assert "ndcg" not in replace(STATUS, last=None, best=None).text()
    assert ", 61,000 images/s, " in STATUS.text("images")


def test_lines_where_there_is_no_terminal() -> None:
    out = console(terminal=False)
    shown = make_progress(out)
    assert type(shown) is PlainProgress
    with shown:
        shown.step(STATUS)
        shown.evaluation(2, {"hr@10": 0.3, "ndcg@10": 0.17}, best=True)
    assert output(out) == "epoch 2 validation: hr@10 0.3000, ndcg@10 0.1700 (best)\n"


def test_a_long_epoch_shows_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    out = console(terminal=False)
    shown = PlainProgress(out)
    clock = iter([0.0, 5.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    shown._shown = 0.0
    for step in (1, 2, 3):
        shown.step(replace(STATUS, step=step))
    assert output(out).splitlines() == [f"epoch 2/9 step 3/48: {STATUS.text()}"]


def test_a_terminal_gets_a_bar() -> None:
    out = console(terminal=True)
    shown = make_progress(out)
    assert type(shown) is LiveProgress
    with shown:
        shown.step(STATUS)
        shown._bar.refresh()
        shown.evaluation(2, {"hr@10": 0.3}, best=False)
    assert "epoch 2/9" in output(out)
    assert "events/s" in output(out)
    assert "epoch 2 validation: hr@10 0.3000" in output(out)


def test_memory_is_what_the_process_holds() -> None:
    before = memory_in_use(torch.device("cpu"))
    held = torch.ones(1 << 25)  # 128 MiB, touched
    assert memory_in_use(torch.device("cpu")) - before > 100 << 20
    assert held.numel()
