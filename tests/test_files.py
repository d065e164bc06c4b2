"""What is written is whole or not there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from longview.errors import InputError, LongviewError
from longview.files import atomic_directory, atomic_file, write_json


def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})
    before = target.read_text()
    with pytest.raises(RuntimeError), atomic_file(target) as work:
        work.write_text("half")
        raise RuntimeError
    assert target.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failure_leaves_the_directory_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "d"
    with atomic_directory(target) as work:
        (work / "old").touch()
    with pytest.raises(KeyboardInterrupt), atomic_directory(target, overwrite=True) as work:
        (work / "new").touch()
        raise KeyboardInterrupt
    assert [p.name for p in target.iterdir()] == ["old"]
    with atomic_directory(target, overwrite=True) as work:
        (work / "new").touch()
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").touch()
    with pytest.raises(InputError, match="already exists"), atomic_directory(tmp_path / "d"):
        pass


def test_a_full_disk_is_said_and_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("{}")
    with pytest.raises(LongviewError, match="disk is full"), atomic_file(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert target.read_text() == "{}"


def test_files_can_be_read_by_others_whoever_wrote_them(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as work:
        work.unlink()
        work.touch(mode=0o600)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
