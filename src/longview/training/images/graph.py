"""A step on images as a CUDA graph: captured once, then replayed with one copy and one launch.

All batches of a P×K sampler have one shape, and images that stay on the device are made there of their numbers, so a
whole step, augmentation, memory and optimiser included, is the same operations each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from longview.data.images.augment import DRAWS
from longview.metric_learning import CrossBatchLoss
from longview.metric_learning.fixed import why_not_fixed
from longview.ops.graphs import launched
from longview.training.config import LoopConfig
from longview.training.graph import WARM_UP, WORDS, graphs_wanted, recorded_step
from longview.training.images.losses import ClassLoss
from longview.training.images.views import ChosenImages

Body = Callable[[Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor]]
AHEAD = 64  # steps whose input waits in pinned memory: so far the host may run before the device


def choose_image_graphs(
    config: LoopConfig, loss: torch.nn.Module, device: torch.device, *, resident: bool
) -> tuple[bool, str | None]:
    """Return `graphs_wanted` for a run on images."""
    return graphs_wanted(config.graphs, device, lambda: _why_not(loss, resident))


def _why_not(loss: torch.nn.Module, resident: bool) -> str | None:
    if not resident:
        return "images are read from files, or data.resident is off"
    if isinstance(loss, ClassLoss):
        return "the loss looks at the class numbers of each batch"
    return why_not_fixed(loss.memory) if isinstance(loss, CrossBatchLoss) else None


class _Slot(NamedTuple):
    """Pinned memory for the input of a step, what lies where in it, and when it has been copied."""

    pinned: Tensor
    samples: Tensor
    draws: Tensor
    scalars: Tensor
    copied: torch.cuda.Event


class CapturedImageSteps:
    """Runs `body` on chosen images, as a graph after the first few steps, which train like any other.

    Args:
        body: `(samples, draws, rate, share) → (loss, norm)`: a whole step on tensors of `device`, the learning rate
            and the share of the weight average scalars among them. It may not wait for the device, and whatever it
            changes it changes in place, gradients excepted, which it begins by dropping.
        batch: images a step.
        changes: whether there are draws.
        device: a GPU.

    A capture that stops halfway is warned of, and all further steps are launched.

    Tensors that `body` reads and somebody else replaces, such as loaded optimiser state, need a new instance.
    """

    def __init__(self, body: Body, *, batch: int, changes: bool, device: torch.device) -> None:
        self.body, self.batch, self.changes, self.device = body, batch, changes, device
        self.steps, self.abandoned = 0, False
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.results: Tensor | None = None  # loss and norm of the graph's latest step
        drawn = batch * DRAWS * changes
        self.sizes = [batch, (drawn + 1) // 2, 2]
        self.buffer = torch.empty(sum(self.sizes), dtype=WORDS, device=device)
        # Allocated once: pinning memory takes the driver longer than a step takes.
        pinned = torch.empty(AHEAD, len(self.buffer), dtype=WORDS, pin_memory=self.buffer.is_cuda)
        self._slots = [self._slot(part) for part in pinned]

    def step(self, chosen: ChosenImages, rate: float, share: float) -> tuple[Tensor, Tensor]:
        """Do the step of `chosen`, on the CPU; return loss and norm, scalars that nothing overwrites."""
        with torch.cuda.device(self.device):
            self._write(chosen, rate, share)
            self.steps += 1
            if self.graph is None and self.steps > WARM_UP and not self.abandoned:
                self._capture()
            if self.graph is None:
                return self._launched()
            assert self.results is not None
            self.graph.replay()
            loss, norm = self.results.clone().unbind()
            return loss, norm

    def _write(self, chosen: ChosenImages, rate: float, share: float) -> None:
        """Copy a step's input to the device, without waiting for it."""
        slot = self._slots[self.steps % AHEAD]
        slot.copied.synchronize()  # long done, unless the host is `AHEAD` steps before the device
        slot.samples.copy_(chosen.samples)
        if chosen.draws is not None:
            slot.draws.copy_(chosen.draws)
        slot.scalars[0], slot.scalars[1] = rate, share
        self.buffer.copy_(slot.pinned, non_blocking=True)
        slot.copied.record()

    def _slot(self, pinned: Tensor) -> _Slot:
        samples, draws, scalars = torch.split(pinned, self.sizes)
        drawn = draws.view(torch.float32)[: self.batch * DRAWS * self.changes].view(-1, DRAWS)
        return _Slot(pinned, samples, drawn, scalars.view(torch.float64), torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]

    def _read(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        samples, draws, scalars = torch.split(self.buffer, self.sizes)
        drawn = draws.view(torch.float32)[: self.batch * DRAWS].view(self.batch, DRAWS) if self.changes else None
        rate, share = scalars.view(torch.float64).float().unbind()
        return samples, drawn, rate, share

    def _launched(self) -> tuple[Tensor, Tensor]:
        loss, norm = launched(lambda: self.body(*self._read()), self.stream)
        return loss.clone(), norm.clone()

    def _capture(self) -> None:
        found = recorded_step(lambda: torch.stack(self.body(*self._read())), self.stream, f"{self.batch} images")
        if found is None:
            self.abandoned = True
        else:
            self.graph, self.results = found
