"""Timing another project: it gets the training events and our settings, and its failure is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from longview.bench import peers, train
from longview.bench.train import bench_train, synthetic_log
from longview.errors import InputError, LongviewError
from longview.training.config import resolve_config

ECHO = """
import json, sys
from pathlib import Path
log, out, epochs, settings = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
rows = log.read_text().splitlines()
out.write_text(json.dumps({"head": rows[:3], "rows": len(rows) - 1, "epochs": epochs, "width": settings["width"]}))
"""


def test_the_peer_sees_the_training_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = synthetic_log(tmp_path / "log", users=30, items=50, median_length=20)
    script = tmp_path / "peer.py"
    script.write_text(ECHO)
    monkeypatch.setattr(peers, "RECTOOLS", script)
    report = peers.time_rectools(Path(sys.executable), data, resolve_config("hstu-small"), threads=1, epochs=2)
    assert report["rows"] == int((data.split.train_end - data.offsets[:-1]).sum())
    assert report["head"] == ["user,item,order", f"0,{data.items[0]},0", f"0,{data.items[1]},1"]
    assert (report["epochs"], report["width"]) == (2, 64)


def test_an_interpreter_may_be_named_from_here_or_by_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "environment").mkdir()
    link = tmp_path / "environment" / "python"
    link.symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    assert peers.interpreter(Path("environment/python")) == link
    monkeypatch.setenv("PATH", str(link.parent))
    assert peers.interpreter(Path("python")) == link


def test_a_missing_interpreter_and_a_failing_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = synthetic_log(tmp_path / "log", users=30, items=50, median_length=20)
    run = resolve_config("hstu-small")
    monkeypatch.setattr(train, "_measure", lambda *_: pytest.fail("trained before it looked for the interpreter"))
    with pytest.raises(InputError, match="give an interpreter"):
        bench_train(peer_python=tmp_path / "nowhere")
    text = tmp_path / "text"
    text.write_text("no program")
    text.chmod(0o755)
    with pytest.raises(InputError, match="give an interpreter"):
        peers.time_rectools(text, data, run, threads=1)
    with pytest.raises(InputError, match="give an interpreter"):
        peers.time_rectools(tmp_path / "nowhere", data, run, threads=1)
    script = tmp_path / "peer.py"
    script.write_text("raise SystemExit('no RecTools here')")
    monkeypatch.setattr(peers, "RECTOOLS", script)
    with pytest.raises(LongviewError, match="no RecTools here"):
        peers.time_rectools(Path(sys.executable), data, run, threads=1)
