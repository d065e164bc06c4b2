"""CUDA graphs: kernels of a call recorded once and then repeated, and what every recording has to mind."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from longview.errors import LongviewError

Result = TypeVar("Result")


def launched(body: Callable[[], Result], stream: torch.cuda.Stream) -> Result:
    """Run `body` kernel by kernel on the stream of its later capture: libraries prepare themselves by stream."""
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        found = body()
    current.wait_stream(stream)
    return found


def recorded(
    body: Callable[[], Result],
    stream: torch.cuda.Stream,
    *,
    refusal: str,
    pool: Any = None,
    generators: Sequence[torch.Generator] = (),
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Return `body` as a graph, and what it returned: tensors that every replay fills anew.

    Args:
        body: may not wait for the device; what it changes it changes in place. It must have been `launched` before.
        stream: where to record.
        refusal: what the user is told where that is impossible; `{reason}` in it is the device's own word.
        pool: the memory of another graph, never replayed at the same time, to share.
        generators: random generators that `body` uses besides the device's own.

    Raises:
        LongviewError: `refusal`.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    try:
        with _no_collection(), torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            found = body()
    except RuntimeError as error:
        raise LongviewError(refusal.format(reason=str(error).splitlines()[0])) from error
    return graph, found


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect garbage now, and not in the block: a graph or an event of an earlier run that dies there would end a
    capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
