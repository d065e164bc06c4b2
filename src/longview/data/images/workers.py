"""Worker processes that return results in the order of the tasks, however many there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

from longview.errors import LongviewError

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2  # tasks under way for each worker


class Workers(Generic[T, R]):
    """`number` processes that apply `function`; with 0, this process does.

    The processes start with the first task and stay until `close`, or until this process is killed. `function` is
    handed to them once, tasks and results each time: keep those small.
    """

    def __init__(self, function: Callable[[T], R], number: int) -> None:
        self.function, self.number = function, number
        self._pool: ProcessPoolExecutor | None = None

    def map(self, tasks: Iterable[T]) -> Iterator[R]:
        """Yield the result of each task, in order; tasks are taken only a little ahead of the results.

        Raises:
            LongviewError: a process has ended, as one does that runs out of memory.
        """
        if not self.number:
            yield from map(self.function, tasks)
            return
        waiting: deque[Future[R]] = deque()
        try:
            for task in tasks:
                waiting.append(self._start().submit(_apply, task))
                if len(waiting) > AHEAD * self.number:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            self._pool = None
            raise LongviewError(
                f"one of {self.number} worker processes ended unexpectedly (out of memory?): use fewer workers, or 0"
            ) from None
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Forked processes share the list of files. Elsewhere forking is unsafe or unknown.
            context = multiprocessing.get_context("fork") if sys.platform == "linux" else None
            self._pool = ProcessPoolExecutor(self.number, context, _begin, (self.function,))
        return self._pool

    def __enter__(self) -> Workers[T, R]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_function: Callable[[Any], Any] | None = None  # of a worker process


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C, and ends us
    _function = function
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has been killed: nobody else tells it that no task will come."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _apply(task: Any) -> Any:
    assert _function is not None
    return _function(task)
