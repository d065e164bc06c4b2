"""Atomic writes: what Longview writes is either there and whole, or not there at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longview.errors import InputError, LongviewError


@contextmanager
def atomic_directory(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `target` that takes its place when the block succeeds.

    On any error, Ctrl-C included, the temporary directory is removed and `target` is as it was.

    Raises:
        InputError: `target` exists and `overwrite` is false.
        LongviewError: the disk is full; the message says where.
    """
    target = Path(target)
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} already exists; choose another directory or pass overwrite (--overwrite)")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    work.chmod(0o755)
    try:
        with _disk_errors(work):
            yield work
        _replace_directory(work, target, overwrite)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that is renamed to it when the block succeeds.

    Raises:
        LongviewError: the disk is full; `target` is unchanged.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    work = Path(name)
    try:
        with _disk_errors(target):
            yield work
            work.chmod(0o644)  # after writing: some writers replace the file by one of their own, private to the user
            _sync(work)
        work.replace(target)
    finally:
        work.unlink(missing_ok=True)


def write_json(target: Path, value: Any) -> None:
    """Write `value` to `target` as indented JSON, atomically."""
    with atomic_file(target) as work:
        work.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace_directory(work: Path, target: Path, overwrite: bool) -> None:
    if not overwrite or not target.exists():
        try:
            work.rename(target)  # takes the place of nothing, or of an empty directory
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise InputError(f"{target} has appeared meanwhile; choose another directory") from None
            raise
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.rename(old / "previous")
    try:
        work.rename(target)
    except OSError:
        (old / "previous").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _disk_errors(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LongviewError(
                f"the disk is full while writing {where.parent}; nothing was changed: free some space and run again"
            ) from error
        raise
