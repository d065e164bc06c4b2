"""Working space inside the directory that is being written, and what killed runs left of theirs."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "scratch"


@contextmanager
def scratch_directory(work: Path, target: Path) -> Iterator[Path]:
    """Yield a folder inside `work` (the temporary directory of `atomic_directory(target)`); it is gone afterwards.

    The folder is locked while its process lives, so that the space of runs that were killed while they wrote
    `target` is recognised, and freed here.
    """
    folder = work / NAME
    folder.mkdir()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for stale in target.absolute().parent.glob(f".{target.name}.*.tmp"):
            if stale != work.absolute() and _abandoned(stale / NAME / "lock"):
                shutil.rmtree(stale, ignore_errors=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _abandoned(lock: Path) -> bool:
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # no lock there: not ours to judge; or locked: its process lives
        return False
    return True
