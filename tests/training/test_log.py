"""The JSONL log."""

from __future__ import annotations

from pathlib import Path

from longview.training.log import RunLog, read_log


def test_records_come_back_in_order(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write("epoch", 4, loss=1.5)
    log.write("evaluation", 4, **{"ndcg@10": 0.1})
    assert read_log(log.path) == [
        {"event": "epoch", "step": 4, "loss": 1.5},
        {"event": "evaluation", "step": 4, "ndcg@10": 0.1},
    ]


def test_rewinding_drops_what_will_be_written_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for step in (4, 8, 12):
        log.write("epoch", step)
    log.path.open("a").write('{"event": "epo')  # the process died here
    log.rewind(8)
    assert [r["step"] for r in read_log(log.path)] == [4, 8]


def test_a_line_cut_off_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write("epoch", 4)
    log.path.open("a").write('{"event": "epo')
    assert len(read_log(log.path)) == 1
    RunLog(tmp_path / "new").rewind(0)  # nothing there: nothing to do
