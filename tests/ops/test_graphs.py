"""A recording that fails says whether the caller may go on without it; what needs a GPU is skipped without one."""

from __future__ import annotations

from types import TracebackType

import pytest
import torch

from longview.errors import LongviewError
from longview.ops.graphs import CaptureAbandonedError, launched, recorded

REFUSAL = "a thing cannot be captured ({reason}); do without"
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Recording:
    """Stands in for `torch.cuda.graph` on a CPU; `invalid` is what closing it raises."""

    invalid = False

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.invalid:
            raise RuntimeError("CUDA error: the capture was invalidated\nCompile with TORCH_USE_CUDA_DSA")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    return monkeypatch


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.usefixtures("on_cpu")
def test_what_stops_in_the_body_can_be_done_without() -> None:
    with pytest.raises(CaptureAbandonedError, match=r"captured \(CUDA out of memory.*\); do without") as found:
        recorded(out_of_memory, None, refusal=REFUSAL)  # type: ignore[arg-type]
    assert found.value.reason.startswith("CUDA out of memory")


@pytest.mark.parametrize("body", [out_of_memory, lambda: None], ids=["and the body stopped", "the body did not"])
def test_what_the_device_calls_invalid_ends_the_run(on_cpu: pytest.MonkeyPatch, body: object) -> None:
    on_cpu.setattr(Recording, "invalid", True)
    with pytest.raises(LongviewError, match=r"\(CUDA error: the capture was invalidated\); do without") as found:
        recorded(body, None, refusal=REFUSAL)  # type: ignore[arg-type]
    assert not isinstance(found.value, CaptureAbandonedError)


@GPU
def test_an_abandoned_recording_moves_no_generator_and_later_ones_work() -> None:
    device, stream = torch.device("cuda"), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    value = torch.zeros(4, device=device)

    def body() -> torch.Tensor:
        return value.add_(torch.rand(4, device=device))

    def stops() -> torch.Tensor:
        body()
        raise torch.OutOfMemoryError("no room")

    found = []
    for tries in (False, True):
        torch.manual_seed(0)
        value.zero_()
        launched(body, stream)
        if tries:
            with pytest.raises(CaptureAbandonedError, match="no room"):
                recorded(stops, stream, refusal=REFUSAL)
        launched(body, stream)
        recorded(body, stream, refusal=REFUSAL)[0].replay()
        found.append(value.cpu().clone())
    assert torch.equal(*found)


@GPU
def test_an_operation_that_waits_for_the_device_cannot_be_gone_on_from() -> None:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    one = torch.ones(1, device="cuda")
    with pytest.raises(LongviewError) as found:
        recorded(lambda: one.item(), stream, refusal=REFUSAL)
    assert not isinstance(found.value, CaptureAbandonedError)
