"""Batches of images as tensors, decoded by worker processes, in an order that resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from longview.data.images.augment import Augment
from longview.data.images.decode import require_pillow
from longview.data.images.framing import Framing
from longview.data.images.imageset import ImageView
from longview.data.images.making import Turned, looks, make_images
from longview.data.images.reader import Loaded, Request
from longview.data.images.workers import Workers
from longview.errors import InputError


@dataclass(frozen=True)
class ImageBatch:
    """`images` (B, C, H, W) float32 of 0 to 1; `labels` (B,) int64 class numbers; `ids` (B,) int64 image numbers."""

    images: Tensor
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Sampler(Protocol):
    """What makes a batch: samples of a view, for each step of an epoch."""

    rank: int
    world_size: int

    def steps(self, epoch: int) -> int:
        """Return the number of batches of `epoch`."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Tensor]:
        """Yield this rank's samples of each batch from `first_step` on, int64."""


class InOrder:
    """Every sample once, in order: for evaluation. The last batch may be short; ranks take samples in turn."""

    def __init__(self, number: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise InputError(f"batch_size={batch_size}, rank={rank} of {world_size}: at least 1, and a rank of the job")
        self.number, self.batch_size, self.rank, self.world_size = number, batch_size, rank, world_size

    def steps(self, epoch: int) -> int:
        return -(-self.number // (self.batch_size * self.world_size))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Tensor]:
        stride = self.batch_size * self.world_size
        for first in range(first_step * stride, self.number, stride):
            yield torch.arange(first + self.rank, min(first + stride, self.number), self.world_size)


class ImageBatches:
    """Batches of `view` as `sampler` chooses them.

    With the same seed a batch depends on (epoch, step) only: not on the number of workers, nor on where an epoch was
    resumed. Packed sets need no workers. Use it as a context manager, or `close` it, to end the workers.

    Args:
        view: the images.
        sampler: see `Sampler`; its sample numbers are those of the view.
        framing: size and channels of a tensor.
        augment: random changes, for training only.
        workers: processes that decode; 0 decodes here.
        seed: of the random changes.
        turned: samples from `len(view)` on are the same images by 90, 180 and 270 degrees, as classes of their own;
            `mirrored`: and from `4 * len(view)` on their mirror images, likewise.
        bad_images: `fail` at an image that cannot be read, or `skip` it: the batch is smaller by it.

    Attributes:
        skipped: image number → reason, of the images skipped so far.
    """

    def __init__(
        self,
        view: ImageView,
        sampler: Sampler,
        framing: Framing,
        *,
        augment: Augment | None = None,
        workers: int = 0,
        seed: int = 0,
        turned: Turned = False,
        bad_images: Literal["fail", "skip"] = "fail",
    ) -> None:
        if workers < 0:
            raise InputError(f"workers={workers}: 0 or more expected")
        self.view, self.sampler, self.framing = view, sampler, framing
        self.augment, self.seed, self.bad_images = augment, seed, bad_images
        self.skipped: dict[int, str] = {}
        self.turned = turned
        apart = torch.arange(looks(turned))[:, None]
        self._places = torch.from_numpy(view.rows.astype(np.int64)).repeat(len(apart))
        self._rows = (torch.from_numpy(view.rows.astype(np.int64)) + apart * len(view.images)).flatten()
        self._labels = (torch.from_numpy(view.labels) + apart * view.images.meta.num_classes).flatten()
        self._workers: Workers[Request, Loaded] | None = None
        if view.images.pixels is None:
            require_pillow()
            self._workers = Workers(view.images.reader().load, workers)

    def steps(self, epoch: int) -> int:
        """Return the number of batches of `epoch`."""
        return self.sampler.steps(epoch)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[ImageBatch]:
        """Yield the batches of `epoch` from `first_step` on.

        Raises:
            InputError: an image that cannot be read and is not to be skipped, or a batch of such images only.
            LongviewError: a worker process has ended.
        """
        # The sampler runs ahead of the images, by as much as the workers do.
        chosen: list[Tensor] = []
        loads = self._loads(epoch, first_step, chosen)
        for step, loaded in enumerate(loads, first_step):
            samples = chosen.pop(0)
            yield self._batch(samples, loaded, epoch, step)

    def close(self) -> None:
        """End the worker processes."""
        if self._workers is not None:
            self._workers.close()

    def __enter__(self) -> ImageBatches:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _loads(self, epoch: int, first_step: int, chosen: list[Tensor]) -> Iterator[Loaded]:
        """Yield the pixels of each batch, and append its samples to `chosen`."""
        size = self.framing.size
        if self.augment is not None and self.augment.moves:
            size = round(size * self.augment.oversize)

        def requests() -> Iterator[Request]:
            for samples in self.sampler.epoch(epoch, first_step):
                chosen.append(samples)
                rows = tuple(self._places[samples].tolist())
                yield Request(rows, size, self.framing.fit, self.framing.mode)

        pixels = self.view.images.pixels
        if self._workers is not None:
            yield from self._workers.map(requests())
        elif pixels is not None:
            for request in requests():
                yield Loaded(pixels[list(request.rows)], tuple(range(len(request.rows))), ())

    def _batch(self, samples: Tensor, loaded: Loaded, epoch: int, step: int) -> ImageBatch:
        self._judge(samples, loaded)
        kept = torch.tensor(loaded.kept, dtype=torch.int64)
        own = None
        if self.augment is not None and self.augment.changes:
            own = draws_of_rank(self.augment, self.sampler, len(samples), (self.seed, epoch, step))[kept]
        chosen = samples[kept]
        look = chosen // len(self.view) if self.turned else None
        pixels = torch.from_numpy(loaded.pixels)
        images = make_images(pixels, self.framing, self.augment, own, look, self.turned)
        return ImageBatch(images, self._labels[chosen], self._rows[chosen])

    def _judge(self, samples: Tensor, loaded: Loaded) -> None:
        """Count what is skipped, or refuse it."""
        if not loaded.problems:
            return
        images = self.view.images
        for place, reason in loaded.problems:
            row = int(self._places[samples[place]])
            if self.bad_images == "fail":
                raise InputError(
                    f"{images.root}: {images.table['key'][row]} cannot be read: {reason}. Prepare the images again "
                    "with bad_images=skip, or skip such images here, too (bad_images='skip')"
                )
            self.skipped[row] = reason
        if not loaded.kept:
            raise InputError(f"{images.root}: no image of this batch can be read: {loaded.problems[0][1]}, …")


def draws_of_rank(augment: Augment, sampler: Sampler, number: int, place: tuple[int, int, int]) -> Tensor:
    """Return the draws (number, DRAWS) for this rank's images of the batch at `place`, (seed, epoch, step)."""
    # Drawn for all ranks, so that a place in the batch gets the same whatever their number.
    draws = augment.draws(number * sampler.world_size, *place)
    return draws[sampler.rank * number : (sampler.rank + 1) * number]
