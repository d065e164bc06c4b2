"""CUDA graphs: kernels of a call recorded once and then repeated, and what every recording has to mind."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from longview.errors import LongviewError

Result = TypeVar("Result")


class CaptureAbandonedError(LongviewError):
    """A recording stopped in `body`, such as for lack of memory, and the device closed it in order.

    Nothing of `body` has run, and random generators stand where they stood: what it left behind on the host, such as
    gradients that no kernel wrote, is the caller's to drop before it goes on launch by launch. `reason` is the word
    of what stopped it.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


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
        CaptureAbandonedError: `refusal`, where the caller can go on without a graph.
        LongviewError: `refusal`, where the device calls the recording invalid: generators and memory may still take
            part in it, so that numbers of later launches could be wrong.
    """
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    own = torch.cuda.default_generators[torch.cuda.current_device()] if started else None
    states = [(one, one.get_state()) for one in (own, *generators) if one is not None]
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    in_body: RuntimeError | None = None
    try:
        with _no_collection(), torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            try:
                found = body()
            except RuntimeError as error:
                in_body = error
                raise
    except RuntimeError as error:
        # Leaving the block closes the recording; had that failed too, its error would be here and not the body's.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        words = refusal.format(reason=reason)
        if error is not in_body:
            raise LongviewError(words) from error
        for generator, state in states:  # what was drawn in the recording was drawn by nobody
            generator.set_state(state)
        raise CaptureAbandonedError(words, reason) from error
    finally:
        in_body = None  # whose traceback holds the tensors of the body
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
