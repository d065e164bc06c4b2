"""Work shared among threads in large pieces, each computed with torch's own threads off.

torch shares every single operation among its threads, and they wait for each other after each one. A pass made of
thousands of small operations then spends its time waiting, without end if another program holds a core. Here a
thread takes a whole piece, and waits once. A piece computed by one thread also has the same bits whatever the
number of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

from longview.ops.attention.lanes import Scratch

Piece = Callable[[Scratch], None]


def share(pieces: list[Piece], dtype: torch.dtype, *, worthwhile: bool) -> None:
    """Run `pieces`, which write to different places, on as many threads as torch would use.

    Each call gets the scratch memory of its thread, for tensors of `dtype`. Gradients are not recorded. Where it is
    not `worthwhile` to wake threads, this one does it all. An error of a piece is raised here.
    """
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    waiting = iter(pieces)

    def work() -> None:
        torch.set_num_threads(1)  # partly a setting of the thread, so said in each
        scratch = _own.scratch(dtype, inference=inference)
        with torch.inference_mode(inference), torch.no_grad():  # neither is inherited by another thread
            for piece in waiting:  # taking the next one of a list is atomic
                piece(scratch)

    try:
        helpers = min(threads, len(pieces)) - 1
        if helpers < 1 or not worthwhile:
            work()
            return
        others = [_helpers(threads - 1).submit(work) for _ in range(helpers)]
        work()
        for other in others:
            other.result()
    finally:
        torch.set_num_threads(threads)


class _Own(threading.local):
    """The scratch memory of a thread, kept between calls: fresh memory costs as much as the arithmetic on it."""

    def __init__(self) -> None:
        self._kept: dict[tuple[torch.dtype, bool], Scratch] = {}

    def scratch(self, dtype: torch.dtype, *, inference: bool) -> Scratch:
        key = (dtype, inference)  # what is made in inference mode cannot be written outside it
        if key not in self._kept:
            self._kept[key] = Scratch(dtype)
        return self._kept[key]


@lru_cache(maxsize=1)
def _helpers(count: int) -> ThreadPoolExecutor:
    """Return waiting threads. Starting one costs, and so do the buffers that the matrix library gives a new one."""
    return ThreadPoolExecutor(count, thread_name_prefix="longview-attention")


_own = _Own()
os.register_at_fork(after_in_child=_helpers.cache_clear)  # threads do not survive a fork
