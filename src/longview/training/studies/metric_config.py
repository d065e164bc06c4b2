"""What a study of metric learning is: drift policies × batch sizes × sizes of the memory × seeds, in some regimes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from longview.config import Config
from longview.errors import InputError
from longview.training.images.config import ImageRunConfig, resolve_image_config
from longview.training.studies.grid import Settings, check_seeds, digest, identity, load_grid, resolved, with_seed

NO_PART = ("name", "evaluation")  # of a cell's identity: it is evaluated in one way


class MetricStudyConfig(Config):
    """A study. All settings are dotted keys of an `ImageRunConfig`; a policy's come last, and `memory: null` is none.

    A regime is a setting in which everything is compared anew, such as a higher learning rate; the usual one has none.
    """

    kind: Literal["metric-learning"]
    name: str
    data: Path = Field(description="a prepared set of images")
    preset: str = "image-small"
    settings: Settings = Field(default={}, description="of all cells, over the preset")
    steps: int = Field(default=4000, ge=1, description="of the training of each cell, and of its schedule")
    timed_steps: int = Field(
        default=0, ge=0, description="measured of each kind of cell, alone on the device; 0 = none"
    )
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1)
    policies: dict[str, Settings] = Field(min_length=1)
    reference: str = Field(default="xbm", description="the policy that the others are compared with")
    batches: tuple[int, ...] = Field(default=(64,), min_length=1, description="images a batch")
    memories: tuple[float, ...] = Field(
        default=(0.5,), min_length=1, description="rows of the memory, as shares of the training images"
    )
    regimes: dict[str, Settings] = {"usual": {}}

    @model_validator(mode="after")
    def _whole(self) -> MetricStudyConfig:
        if self.reference not in self.policies:
            raise ValueError(f"reference {self.reference!r} is none of the policies")
        check_seeds(self.seeds)
        if not all(share > 0 for share in self.memories):
            raise ValueError("memories: shares above 0 expected")
        return self

    def cells(self, training_images: int) -> list[MetricCell]:
        """Return the cells, all of one seed before the next, so that a study cut short is a study of fewer seeds.

        Raises:
            InputError: settings that are no configuration; the message names the cell.
        """
        kinds = self.kinds(training_images)
        return [
            MetricCell(labels, with_seed(config, seed), seed, self.steps) for seed in self.seeds
            for labels, config in kinds
        ]  # fmt: skip

    def kinds(self, training_images: int) -> list[tuple[dict[str, Any], ImageRunConfig]]:
        """Return labels and configuration of everything that is compared, without seeds.

        A policy without a memory comes once a batch size; its label `memory` is None.
        """
        found = []
        for regime, own in self.regimes.items():
            base = self._resolve(regime, own)
            for batch in self.batches:
                for policy, settings in self.policies.items():
                    without = "memory" in settings and settings["memory"] is None
                    for share in (None,) if without else self.memories:
                        labels = {"regime": regime, "batch": batch, "memory": share, "policy": policy}
                        where = f"{regime}, batch {batch}, {policy}" + ("" if share is None else f", memory {share:g}")
                        size = {} if share is None else {"memory.capacity": max(batch, round(share * training_images))}
                        size |= {"sampler.classes_per_batch": _classes(batch, base, where)}
                        found.append((labels, self._resolve(where, {**own, **size, **settings})))
        return found

    def _resolve(self, where: str, settings: Mapping[str, Any]) -> ImageRunConfig:
        merged = {"loop.metric": "latest", "data.validation_classes": 0, **self.settings, **settings}
        return resolved(resolve_image_config, self.preset, merged, self.name, where)


@dataclass(frozen=True)
class MetricCell:
    """One training of a study: what it is called, and what it is."""

    labels: dict[str, Any]
    config: ImageRunConfig
    seed: int
    steps: int

    def key(self, fingerprint: str) -> str:
        """Return what names the training: the same configuration, steps, data and seed have the same key."""
        return digest([identity(self.config, NO_PART), self.steps, fingerprint, self.seed])

    def time_key(self, fingerprint: str) -> str:
        """Return the same without seed and steps, for what does not depend on them."""
        return digest([identity(self.config, NO_PART), fingerprint])


def load_metric_study(
    path: str | Path, overrides: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> MetricStudyConfig:
    """Read a study of metric learning from a YAML file; `overrides` (`key=value`) are settings of all cells.

    Raises:
        InputError: no such file, an unknown key, or a study that lacks something.
    """
    return load_grid(MetricStudyConfig, path, overrides, seeds)


def _classes(batch: int, base: ImageRunConfig, where: str) -> int:
    """Return the classes of a batch."""
    each = base.sampler.samples_per_class
    if batch % each:
        raise InputError(f"study, {where}: a batch of {batch} images does not divide into classes of {each}")
    return batch // each
