"""A full disk, a killed process, Ctrl-C and an existing directory: the target is whole, or as it was."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from longview.data import PreparedData
from longview.data.prepare import prepare
from longview.data.spool import Spool
from longview.errors import InputError, LongviewError
from tests.data.logs import LOG, write

OTHER = LOG.replace("u3", "u4")

KILLED = """
import os, signal, sys
from longview.data.prepare import prepare
def report(stage, done, total):
    if stage == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(sys.argv[1], out=sys.argv[2], report=report, overwrite=True)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write(tmp_path / "log.csv", LOG)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("failure", [full, interrupt])
@pytest.mark.parametrize("where", ["longview.data.spool.Spool.append", "longview.data.assemble.write_arrow"])
@pytest.mark.parametrize("previous", [False, True])
def test_a_full_disk_and_ctrl_c_change_nothing(
    tmp_path: Path,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Callable[..., None],
    where: str,
    previous: bool,
) -> None:
    if previous:
        prepare(write(tmp_path / "other.csv", OTHER), out=tmp_path / "data", name="before")
    names = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(where, failure)
        with pytest.raises(LongviewError if failure is full else KeyboardInterrupt) as caught:
            prepare(log, out=tmp_path / "data", overwrite=True)
    if failure is full:
        assert "the disk is full" in str(caught.value)
        assert not isinstance(caught.value, InputError)  # exit status 1: the input is not to blame
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    if previous:
        assert PreparedData.open(tmp_path / "data").meta.name == "before"


@pytest.mark.parametrize("previous", [False, True])
def test_a_killed_process_changes_nothing_and_the_next_run_clears_up(tmp_path: Path, log: Path, previous: bool) -> None:
    if previous:
        prepare(write(tmp_path / "other.csv", OTHER), out=tmp_path / "data", name="before")
    target = tmp_path / "data"
    killed = subprocess.run([sys.executable, "-c", KILLED, log, target, "writing"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".data.*.tmp"))) == 1
    assert target.exists() == previous
    if previous:
        assert PreparedData.open(target).meta.name == "before"
    foreign = tmp_path / ".data.somebody.tmp"
    foreign.mkdir()
    prepare(log, out=target, name="after", overwrite=True)
    assert PreparedData.open(target).meta.name == "after"
    assert list(tmp_path.glob(".data.*.tmp")) == [foreign]  # what we do not know we do not touch


def test_a_run_that_is_still_writing_is_left_alone(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = Spool.append
    inner: list[PreparedData] = []

    def meanwhile(spool: Spool, columns: dict[str, object]) -> None:
        monkeypatch.setattr(Spool, "append", append)
        inner.append(prepare(log, out=tmp_path / "data"))
        spool.append(columns)  # type: ignore[arg-type]

    monkeypatch.setattr(Spool, "append", meanwhile)
    with pytest.raises(InputError, match="has appeared meanwhile"):
        prepare(log, out=tmp_path / "data")
    assert PreparedData.open(tmp_path / "data").fingerprint == inner[0].fingerprint


def test_an_existing_data_set_is_kept_unless_told_otherwise(tmp_path: Path, log: Path) -> None:
    prepare(log, out=tmp_path / "data", name="before")
    with pytest.raises(InputError, match=r"already exists.*--overwrite"):
        prepare(log, out=tmp_path / "data")
    assert prepare(log, out=tmp_path / "data", name="after", overwrite=True).meta.name == "after"


def test_what_is_no_data_set_is_never_overwritten(tmp_path: Path, log: Path) -> None:
    thesis = write(tmp_path / "thesis.txt", "years of work")
    (tmp_path / "home").mkdir()
    kept = write(tmp_path / "home" / "letter.txt", "dear")
    for target, words in ((tmp_path / "home", "not a prepared data set"), (thesis, "not a prepared data set")):
        with pytest.raises(InputError, match=words):
            prepare(log, out=target, overwrite=True)
    assert (thesis.read_text(), kept.read_text()) == ("years of work", "dear")
