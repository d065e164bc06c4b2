"""Work shared among threads in large pieces, each computed with torch's own threads off.

torch shares every single operation among its threads, and they wait for each other after each one. A pass made of
thousands of small operations then spends its time waiting, without end if another program holds a core. Here a
thread takes a whole piece, and waits once. A piece computed by one thread also has the same bits whatever the
number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from longview.ops.attention.lanes import Scratch

Piece = Callable[[Scratch], None]


def share(pieces: list[Piece], dtype: torch.dtype, *, worthwhile: bool) -> None:
    """Run `pieces`, which write to different places, on as many threads as torch would use.

    Each call gets the scratch memory of its thread, for tensors of `dtype`. Gradients are not recorded. Where it is
    not `worthwhile` to start threads, this one does it all. An error of a piece is raised here.
    """
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    waiting = iter(pieces)

    def work() -> None:
        scratch = Scratch(dtype)
        with torch.inference_mode(inference), torch.no_grad():  # neither is inherited by a new thread
            for piece in waiting:  # taking the next one of a list is atomic
                piece(scratch)

    torch.set_num_threads(1)
    try:
        helpers = min(threads, len(pieces)) - 1
        if helpers < 1 or not worthwhile:
            work()
            return
        with ThreadPoolExecutor(helpers, thread_name_prefix="longview-attention") as pool:
            others = [pool.submit(work) for _ in range(helpers)]
            work()
        for other in others:
            other.result()
    finally:
        torch.set_num_threads(threads)
