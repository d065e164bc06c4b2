"""The configuration of a run on images, and the presets that ship with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from longview.config import Config, parse
from longview.data.images import Augment
from longview.data.images.framing import Fit
from longview.data.images.making import Turned
from longview.data.images.samplers import Singletons
from longview.errors import InputError, suggestion
from longview.metric_learning import AdaptiveMomentMatching, MemoryConfig, PairwiseLoss
from longview.metric_learning.kalman import Drift
from longview.models.encoders import EncoderConfig, RatesConfig
from longview.ops.memory_loss import PAIR_LOSSES
from longview.training.config import LoopConfig, OptimiserConfig, preset_names, resolve

PRESETS = Path(__file__).parent / "presets"
CLASS_LOSSES = {  # losses against one learned vector a class, and their settings
    "normalised-softmax": ("temperature",),
    "arcface": ("margin", "scale"),
    "proxy-anchor": ("margin", "alpha"),
}


class ImageDataConfig(Config):
    """What the encoder sees of an image, and which classes choose the best epoch."""

    size: int | None = Field(
        default=None, ge=1, description="pixels a side; default: the encoder's, else that of the stored pixels"
    )
    fit: Fit = Field(default="crop", description="of other shapes to the square: crop, pad or stretch")
    augment: Augment = Augment()
    turned_classes: Turned = Field(
        default=False,
        description="training images by 90, 180 and 270 degrees are classes of their own (1605.06065); mirrored: and "
        "so are their mirror images",
    )
    resident: Literal["auto", "on", "off"] = Field(
        default="auto", description="decoded training images stay on the device; auto = on a GPU, where they are small"
    )
    workers: int = Field(default=0, ge=0, le=256, description="processes that decode files; stored pixels need none")
    bad_images: Literal["fail", "skip"] = Field(default="fail", description="files that cannot be read")
    validation_classes: float = Field(
        default=0.1, ge=0, lt=1,
        description="share of training classes held out to choose the epoch by, where the data set has none for it; "
        "with 0 and loop.metric latest, all train and the last weights are kept",
    )  # fmt: skip

    @field_validator("resident", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return ("off", "on")[value] if isinstance(value, bool) else value  # YAML reads both words as truth values


class SamplerConfig(Config):
    """P×K batches: which classes, and how many images of each."""

    kind: Literal["covering", "category"] = Field(
        default="covering", description="every image once an epoch, or classes spread evenly over categories"
    )
    classes_per_batch: int = Field(default=16, ge=2)
    samples_per_class: int = Field(default=4, ge=2)
    singletons: Singletons = Field(default="skip", description="classes of one image: skip them, or repeat the image")

    @property
    def batch_size(self) -> int:
        return self.classes_per_batch * self.samples_per_class


class ImageLossConfig(Config):
    """A loss over pairs, and the weights of batch and memory in it; or one against learned vectors of the classes."""

    kind: Literal[
        "contrastive", "triplet", "multi-similarity", "info-nce", "supervised-contrastive", "circle",
        "normalised-softmax", "arcface", "proxy-anchor",
    ] = Field(default="contrastive", description="the last three are baselines: they need memory null")  # fmt: skip
    settings: dict[str, float | str] = Field(default={}, description="of that loss, such as negative_margin")
    reduction: Literal["mean_active", "mean_per_anchor", "sum"] = Field(
        default="mean_active",
        description="over pairs with a loss (of contrastive: positives and negatives apart), so that a large memory "
        "weighs no more than a batch; or over anchors, of sums over pairs",
    )
    batch_weight: float = Field(default=1.0, ge=0)
    memory_weight: float = Field(default=1.0, ge=0)
    class_rate: float = Field(default=10.0, gt=0, description="of vectors of classes, as a multiple of optimiser.rate")

    def class_settings(self) -> dict[str, float]:
        """Return the settings of a loss against vectors of classes.

        Raises:
            InputError: a setting the loss does not have.
        """
        known = CLASS_LOSSES[self.kind]
        for name in self.settings:
            if name not in known:
                raise InputError(
                    f"loss.settings: no {name!r} of {self.kind}{suggestion(name, known)}: {', '.join(known)}"
                )
        return {name: float(value) for name, value in self.settings.items()}

    def build(self) -> PairwiseLoss:
        """Return the loss over pairs.

        Raises:
            InputError: a setting the loss does not have, or one out of range.
        """
        return PairwiseLoss(parse(PAIR_LOSSES[self.kind], self.settings, "loss.settings"), reduction=self.reduction)


class RunMemoryConfig(Config):
    """The memory of a run; its width is that of the encoder. See `longview.metric_learning.MemoryConfig`."""

    capacity: int = Field(default=10_000, ge=1, description="rows")
    drift: Drift = Field(default=AdaptiveMomentMatching(), description="kind: none, xbn, axbn or moving-average")
    space: Literal["after-l2", "before-l2"] = "after-l2"
    storage: Literal["float32", "bfloat16", "float16"] = "float32"
    order: Literal["normalise-first", "enqueue-first"] = "normalise-first"
    renormalise: bool | None = None
    warmup_steps: int = Field(default=0, ge=0, description="steps that only teach the filter")
    age_limit: int | None = Field(default=None, ge=1, description="hide rows that are more steps old than this")
    momentum: float | None = Field(
        default=None, ge=0, lt=1, description="store what a slow copy of the encoder makes, this much of itself a step"
    )

    def of_width(self, width: int) -> MemoryConfig:
        """Return the setting of a memory of embeddings of `width` dimensions."""
        own = {name: getattr(self, name) for name in type(self).model_fields if name != "momentum"}
        return MemoryConfig(width=width, **own)


class ImageLoopConfig(LoopConfig):
    """As of logs; the metric is one of the retrieval among held-out classes, or `latest`: the last epoch's weights."""

    metric: str = "map@r"


class ImageEvaluationConfig(Config):
    """What is reported of the best weights, and how the memory is watched."""

    recall_at: tuple[int, ...] = Field(default=(1, 5, 10), min_length=1)
    resamples: int = Field(default=1000, ge=0, description="bootstrap resamples; 0 = no intervals")
    gallery_queries: int = Field(default=8, ge=0, description="rows of the picture of queries and their neighbours")
    drift_every: int = Field(default=0, ge=0, description="steps between looks at the memory's drift; 0 = never")
    drift_probes: int = Field(default=256, ge=4, description="images that are embedded again at each look")


class ImageRunConfig(Config):
    """One training run on images: with the data set's fingerprint it determines the result on a CPU."""

    name: str = "custom"
    task: Literal["images"] = "images"
    data: ImageDataConfig = ImageDataConfig()
    encoder: EncoderConfig = EncoderConfig()
    sampler: SamplerConfig = SamplerConfig()
    loss: ImageLossConfig = ImageLossConfig()
    memory: RunMemoryConfig | None = Field(default=RunMemoryConfig(), description="null trains on batches alone")
    optimiser: OptimiserConfig = OptimiserConfig()
    rates: RatesConfig = RatesConfig()
    loop: ImageLoopConfig = ImageLoopConfig()
    evaluation: ImageEvaluationConfig = ImageEvaluationConfig()

    @model_validator(mode="after")
    def _fits(self) -> ImageRunConfig:
        if self.memory is not None:
            if self.memory.capacity < self.sampler.batch_size:
                raise ValueError(
                    f"memory.capacity {self.memory.capacity} is less than a batch of {self.sampler.batch_size} "
                    "(sampler.classes_per_batch × samples_per_class): raise it, or set memory to null"
                )
            if self.memory.space == "before-l2" and self.encoder.head.normalise:
                raise ValueError("memory.space before-l2 needs encoder.head.normalise false: the loss normalises")
        if self.loss.kind in CLASS_LOSSES and self.memory is not None:
            raise ValueError(f"loss.kind {self.loss.kind} compares with vectors of classes: set memory to null")
        if self.optimiser.embedding_weight_decay:
            raise ValueError("optimiser.embedding_weight_decay is of runs on logs: leave it out")
        if self.optimiser.tables != "dense":
            raise ValueError("optimiser.tables rowwise is of runs on logs: leave it out")
        return self


def image_preset_names() -> list[str]:
    """Return the names of the presets for images."""
    return preset_names(PRESETS)


def resolve_image_config(name_or_path: str, overrides: Sequence[str] = ()) -> ImageRunConfig:
    """Return the preset or YAML file `name_or_path` with `key=value` overrides applied.

    Example:
        >>> resolve_image_config("image-small", ["memory.drift.kind=xbn"]).memory.drift.kind
        'xbn'

    Raises:
        InputError: no such preset or file, an unknown key, a value out of range.
    """
    return resolve(ImageRunConfig, PRESETS, name_or_path, overrides, " for images")
