"""One cell of a study of metric learning: train so many steps, and measure retrieval among classes never seen.

A cell is a generator that gives way every few steps, so that one process trains several at a time, each on a stream of
its own: the kernels of a small encoder leave most of a GPU idle.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from longview.data.images import ImageSet, ImageView
from longview.data.images.framing import Framing
from longview.data.images.resident import ResidentImages
from longview.evaluation.retrieval import Embedded, RetrievalConfig, evaluate_retrieval
from longview.metric_learning import CrossBatchLoss, MemoryWarning
from longview.models.encoders import ImageEncoder
from longview.training.images.config import ImageRunConfig
from longview.training.images.drift import watch_memory
from longview.training.images.trainer import ImageTrainer
from longview.training.images.views import ChosenImages, TrainingBatches, TrainingImages, Views, framing_of
from longview.training.loop import DivergenceError

AGES = (1, 3, 10, 30, 100, 300)  # steps at which the probe's drift is measured
MOMENTS = (0.25, 0.5, 0.75)  # shares of the training at which it is
WARM_STEPS = 10  # before steps are measured; among them is the capture
TURN = 25  # steps between places where a cell gives way
CHECK = 500  # steps between looks at the loss
EMBEDDED_AT_ONCE = 2048
NEVER = 1 << 60


@dataclass(frozen=True)
class CellImages:
    """The images of a study in one process: those of the test stay on the device for all its cells."""

    images: ImageSet
    device: torch.device

    @cached_property
    def views(self) -> Views:
        """All training classes train: nothing is chosen by what comes out."""
        return Views(self.images.train, ImageView(self.images, self.images.train.rows[:0]), 0)

    def test(self, framing: Framing) -> ResidentImages:
        """Return the images of unseen classes on the device."""
        if framing not in self._tests:
            self._tests[framing] = ResidentImages(self.images.query, framing, device=self.device)
        return self._tests[framing]

    @cached_property
    def _tests(self) -> dict[Framing, ResidentImages]:
        return {}


def image_cell(config: ImageRunConfig, steps: int, source: CellImages) -> Generator[None, None, dict[str, Any]]:
    """Train `config` for `steps` steps and return the record of the cell.

    `metrics` are those of a leave-one-out retrieval among all test images by the last weights. `seconds` is the wall
    time of a step, whatever ran beside it. `memory_bytes` are those of the buffers of the memory. `drift` has, at each
    of `MOMENTS`, what `DriftDiagnostics` records for `AGES`.

    Raises:
        DivergenceError: the loss is no longer a number.
    """
    trainer, batches, framing = _start(config, steps, source)
    watch = _Watch(trainer, source, framing, steps)
    begin = time.perf_counter()
    loss = torch.zeros(())
    for number, batch in enumerate(_batches(batches, steps)):
        watch.before(number)
        loss, _ = trainer.step(batch, number)
        if number % CHECK == 0:
            _check(loss, number)
        if number % TURN == 0:
            yield
    _check(loss, steps - 1)  # waits for the device
    seconds = (time.perf_counter() - begin) / steps
    return {
        "seed": config.loop.seed,
        "steps": steps,
        "metrics": unseen_metrics(trainer.evaluated, source.test(framing)),
        "loss": float(loss),
        "seconds": {"step": seconds},
        "memory_bytes": memory_bytes(trainer),
        "drift": watch.records,
    }


def time_cell(config: ImageRunConfig, steps: int, source: CellImages) -> Generator[None, None, dict[str, Any]]:
    """Return what a step of `config` takes, over `steps` steps; nothing else may run on the device meanwhile.

    `seconds` of a step, batch and all; `memory_bytes` as of `image_cell`; `peak_bytes` of the whole training on a GPU,
    without the images.
    """
    gpu = source.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(source.device)
    before = torch.cuda.memory_allocated(source.device) if gpu else 0
    trainer, batches, _ = _start(config, WARM_STEPS + steps, source)
    held = before if trainer.resident is None else before + trainer.resident.pixels.nbytes
    loss, begin = torch.zeros(()), 0.0
    yield
    for number, batch in enumerate(_batches(batches, WARM_STEPS + steps)):
        if number == WARM_STEPS:
            float(loss)  # waits for the device
            begin = time.perf_counter()
        loss, _ = trainer.step(batch, number)
    float(loss)
    return {
        "seconds": (time.perf_counter() - begin) / steps,
        "steps": steps,
        "captured": trainer.captured is not None,
        "memory_bytes": memory_bytes(trainer),
        "peak_bytes": torch.cuda.max_memory_allocated(source.device) - held if gpu else None,
    }


def _start(config: ImageRunConfig, steps: int, source: CellImages) -> tuple[ImageTrainer, TrainingBatches, Framing]:
    with torch.random.fork_rng([]):
        torch.manual_seed(config.loop.seed)
        encoder = config.encoder.build()
        framing = framing_of(config, encoder, source.images)
        batches = TrainingBatches(source.views.train, config, framing, source.device)
        trainer = ImageTrainer(config, encoder, batches, device=source.device, planned_steps=steps)
    return trainer, batches, framing


def unseen_metrics(encoder: ImageEncoder, test: ResidentImages) -> dict[str, float]:
    """Return the metrics of a leave-one-out retrieval among the images of `test`, on their device."""
    metrics: dict[str, float] = evaluate_retrieval(
        embed_resident(encoder, test), None, RetrievalConfig(recall_at=(1,), neighbours=1, resamples=0)
    )["metrics"]
    return {name: float(value) for name, value in metrics.items()}


@torch.no_grad()
def embed_resident(encoder: ImageEncoder, images: ResidentImages) -> Embedded:
    """Return the embeddings of all of `images`, which stay on the device."""
    was_training = encoder.training
    encoder.eval()
    numbers = torch.arange(images.number, device=images.labels.device)
    vectors = [encoder(images.batch(part).images).float() for part in torch.split(numbers, EMBEDDED_AT_ONCE)]
    encoder.train(was_training)
    return Embedded(torch.cat(vectors), images.labels.cpu().numpy(), images.ids.cpu().numpy())


def memory_bytes(trainer: ImageTrainer) -> int:
    """Return the bytes of the memory's buffers, and of a slow encoder; 0 without a memory."""
    if not isinstance(trainer.loss, CrossBatchLoss):
        return 0
    held: list[Tensor] = list(trainer.loss.memory.state_dict().values())
    held += [] if trainer.slow is None else list(trainer.slow.state_dict().values())
    return sum(value.numel() * value.element_size() for value in held)


class _Watch:
    """Measures the drift of a probe at a few moments of a training, by age."""

    def __init__(self, trainer: ImageTrainer, source: CellImages, framing: Framing, steps: int) -> None:
        self.trainer, self.records = trainer, list[dict[str, Any]]()
        self.looks = [round(share * steps) for share in MOMENTS]
        watch_memory(trainer, source.views.train, framing)
        self.diagnostics = trainer.diagnostics
        if self.diagnostics is not None:
            self.diagnostics.every = NEVER  # this class says when

    def before(self, number: int) -> None:
        """Look at the probe before step `number`, where it is time."""
        if self.diagnostics is None:
            return
        ages = [look - number for look in self.looks if 0 <= look - number <= AGES[-1]]
        if ages and ages[0] in AGES:
            self.diagnostics.remember()
        elif ages and ages[0] == 0:
            self.trainer.settle()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MemoryWarning)
                self.records.append(self.diagnostics.record())
            self.diagnostics.load_state_dict({"records": [], "warnings": [], "snapshots": [], "parts": []})


def _batches(batches: TrainingBatches, steps: int) -> Iterator[TrainingImages | ChosenImages]:
    """Yield `steps` batches, over as many epochs as that takes."""
    epoch, left = 0, steps
    while left:
        for batch in batches.epoch(epoch):
            yield batch
            left -= 1
            if not left:
                return
        epoch += 1


def _check(loss: Tensor, number: int) -> None:
    if not math.isfinite(float(loss)):
        raise DivergenceError(f"the loss became {float(loss)} at step {number + 1}")
