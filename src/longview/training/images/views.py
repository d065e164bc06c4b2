"""What of a set of images a run trains on, chooses by and reports on, and how images become batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longview.data.images import Augment, ImageBatch, ImageBatches, ImageSet, ImageView, InOrder
from longview.data.images.batches import draws_of_rank
from longview.data.images.framing import Framing
from longview.data.images.making import Turned, looks
from longview.data.images.resident import ResidentImages, why_not_resident
from longview.data.images.samplers import CategoryBatches, ClassBatches, CoveringBatches
from longview.errors import InputError
from longview.evaluation.retrieval import Embedded
from longview.models.encoders import ImageEncoder
from longview.ops.collectives import ranks
from longview.training.images.config import ImageDataConfig, ImageRunConfig, SamplerConfig

EVALUATED_AT_ONCE = 512


@dataclass(frozen=True)
class Views:
    """The images of a run; `validation` is empty where all classes train, and `held_out` where it is of the set."""

    train: ImageView
    validation: ImageView
    held_out: int

    @classmethod
    def of(cls, images: ImageSet, config: ImageDataConfig) -> Views:
        """Return the set's own validation images, or those of training classes held out for it: always the same ones.

        Raises:
            InputError: no training images, or too few classes to hold some out.
        """
        train, validation = images.train, images.validation
        if not len(train):
            raise InputError(f"{images.path}: no images to train on (split train); prepare the images again")
        if len(validation) or not config.validation_classes:
            return cls(train, validation, 0)
        classes, counts = np.unique(train.labels, return_counts=True)
        paired = classes[counts > 1]  # a class of one image can neither be found nor missed
        number = max(2, round(config.validation_classes * len(classes)))
        if len(paired) < number or len(classes) - number < 2:
            raise InputError(
                f"{images.path}: {len(classes)} classes to train on, {len(paired)} of them with two images or more: "
                f"too few to hold {number} out for choosing the epoch; add classes, or set "
                "data.validation_classes=0 and loop.metric=latest"
            )
        chosen = np.random.default_rng(0).permutation(paired)[:number]  # whatever the seed of the run
        held = np.isin(train.labels, chosen)
        return cls(ImageView(images, train.rows[~held]), ImageView(images, train.rows[held]), number)


def make_sampler(view: ImageView, config: SamplerConfig, seed: int, *, turned: Turned = False) -> ClassBatches:
    """Return the P×K batches of `view`; where `turned`, samples from `len(view)` on are its images by quarter turns.

    Where that is `mirrored`, those from `4 * len(view)` on are the mirror images and their turns.

    Raises:
        InputError: fewer classes than P, or no categories where they are to be balanced.
    """
    world, rank = ranks()
    options = {**config.model_dump(exclude={"kind"}), "rank": rank, "world_size": world}
    apart = np.arange(looks(turned))[:, None]
    labels = (view.labels + apart * view.images.meta.num_classes).reshape(-1)
    if config.kind == "covering":
        return CoveringBatches(labels, seed=seed, **options)
    if view.categories is None:
        raise InputError(f"{view.images.path}: sampler.kind category, but the images have none; set it to covering")
    return CategoryBatches(labels, np.tile(view.categories, len(apart)), seed=seed, **options)


def framing_of(config: ImageRunConfig, encoder: ImageEncoder, images: ImageSet) -> Framing:
    """Return how images become squares for `encoder`, whose own preprocessing normalises them.

    Raises:
        InputError: nothing says how large.
    """
    packed = images.meta.packed
    size = config.data.size or encoder.preprocess.config.size or (None if packed is None else packed.height)
    if size is None:
        raise InputError(f"{images.path}: images of several sizes: say how large the encoder sees them, data.size=224")
    return Framing(size=size, channels=1 if encoder.backbone.channels == 1 else 3, fit=config.data.fit)


class TrainingImages(ImageBatch):
    """A batch as the training loop counts it."""

    @property
    def num_tokens(self) -> int:
        """The number of images, which the loop weighs losses and speed by."""
        return len(self)


@dataclass(frozen=True)
class ChosenImages:
    """A batch that is yet to be made of images on the device: their numbers (B,), and draws (B, DRAWS) of changes."""

    samples: Tensor
    draws: Tensor | None

    @property
    def num_tokens(self) -> int:
        """The number of images."""
        return len(self.samples)


def choose_resident(view: ImageView, config: ImageDataConfig, device: torch.device) -> bool:
    """Return whether the training images stay on `device`.

    Raises:
        InputError: they are to, and cannot.
    """
    if config.resident == "off" or (config.resident == "auto" and device.type != "cuda"):
        return False
    reason = why_not_resident(view)
    if reason is not None and config.resident == "on":
        raise InputError(f"data.resident on, but {view.images.path}: {reason}")
    return reason is None


class TrainingBatches:
    """Augmented P×K batches that depend on (epoch, step) alone, so that a run resumes anywhere.

    With images that stay on a device (`resident`), the trainer makes them of the chosen numbers; they are the same.
    `classes` (C,) int64 are the numbers of the classes that train, in order.
    """

    def __init__(
        self, view: ImageView, config: ImageRunConfig, framing: Framing, device: torch.device | None = None
    ) -> None:
        data, self.seed = config.data, config.loop.seed
        self.sampler = make_sampler(view, config.sampler, self.seed, turned=data.turned_classes)
        apart = np.arange(looks(data.turned_classes))[:, None] * view.images.meta.num_classes
        self.classes = torch.from_numpy(np.unique(view.labels + apart).astype(np.int64))
        self.augment: Augment = data.augment
        self.resident: ResidentImages | None = None
        self.batches: ImageBatches | None = None
        if device is not None and choose_resident(view, data, device):
            self.resident = ResidentImages(
                view, framing, augment=self.augment, device=device, turned=data.turned_classes
            )
        else:
            self.batches = ImageBatches(
                view, self.sampler, framing, augment=self.augment, workers=data.workers, seed=self.seed,
                turned=data.turned_classes, bad_images=data.bad_images,
            )  # fmt: skip

    def steps(self, epoch: int) -> int:
        """Return the number of batches of `epoch`."""
        return self.sampler.steps(epoch)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[TrainingImages | ChosenImages]:
        """Yield the batches of `epoch` from `first_step` on."""
        if self.batches is not None:
            for batch in self.batches.epoch(epoch, first_step):
                yield TrainingImages(batch.images, batch.labels, batch.ids)
            return
        for step, samples in enumerate(self.sampler.epoch(epoch, first_step), first_step):
            changes = self.augment.changes
            place = (self.seed, epoch, step)
            yield ChosenImages(
                samples, draws_of_rank(self.augment, self.sampler, len(samples), place) if changes else None
            )

    def close(self) -> None:
        """End the worker processes, if there are any."""
        if self.batches is not None:
            self.batches.close()


@torch.no_grad()
def embed_view(
    encoder: ImageEncoder, view: ImageView, framing: Framing, config: ImageDataConfig, device: torch.device
) -> Embedded:
    """Return the embeddings of `view` by `encoder`, in evaluation mode meanwhile, with class names and image numbers.

    Raises:
        InputError: an image that cannot be read, or embeddings that are not numbers.
    """
    was_training = encoder.training
    encoder.eval()
    vectors: list[Tensor] = []
    labels: list[Tensor] = []
    ids: list[Tensor] = []
    in_order = InOrder(len(view), EVALUATED_AT_ONCE)
    try:
        with ImageBatches(view, in_order, framing, workers=config.workers, bad_images=config.bad_images) as batches:
            for batch in batches.epoch(0):
                vectors.append(encoder(batch.images.to(device)).float().cpu())
                labels.append(batch.labels)
                ids.append(batch.ids)
    finally:
        encoder.train(was_training)
    names = np.asarray(view.images.label_names)[torch.cat(labels).numpy()]
    return Embedded(torch.cat(vectors), names.tolist(), torch.cat(ids).numpy())
