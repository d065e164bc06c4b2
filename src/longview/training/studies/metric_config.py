"""What a study of metric learning is: drift policies × batch sizes × sizes of the memory × seeds, in some regimes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from longview.config import Config, load_yaml, override, parse
from longview.errors import InputError
from longview.training.images.config import ImageRunConfig, resolve_image_config
from longview.training.studies.config import NOT_IN_KEY, Settings


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
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} repeat")
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
            MetricCell(labels, _with_seed(config, seed), seed, self.steps) for seed in self.seeds
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
        assignments = [f"{key}={json.dumps(value)}" for key, value in merged.items()]
        try:
            return resolve_image_config(self.preset, [*assignments, f"name={json.dumps(where)}"])
        except InputError as error:
            raise InputError(f"study {self.name!r}, {where}: {error}") from None


@dataclass(frozen=True)
class MetricCell:
    """One training of a study: what it is called, and what it is."""

    labels: dict[str, Any]
    config: ImageRunConfig
    seed: int
    steps: int

    def key(self, fingerprint: str) -> str:
        """Return what names the training: the same configuration, steps, data and seed have the same key."""
        return _digest([_identity(self.config), self.steps, fingerprint, self.seed])

    def kind_key(self, fingerprint: str) -> str:
        """Return the same without seed and steps, for what does not depend on them."""
        return _digest([_identity(self.config), fingerprint])


def load_metric_study(
    path: str | Path, overrides: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> MetricStudyConfig:
    """Read a study of metric learning from a YAML file; `overrides` (`key=value`) are settings of all cells.

    Raises:
        InputError: no such file, an unknown key, or a study that lacks something.
    """
    values = {"name": Path(path).stem, **load_yaml(Path(path))}
    for assignment in overrides:
        key, sign, _ = assignment.partition("=")
        value: Any = override({}, [assignment])
        for part in key.split(".") if sign else ():
            value = value[part]
        values["settings"] = {**values.get("settings", {}), key: value}
    if seeds is not None:
        values["seeds"] = list(seeds)
    return parse(MetricStudyConfig, values, str(path))


def _classes(batch: int, base: ImageRunConfig, where: str) -> int:
    """Return the classes of a batch."""
    each = base.sampler.samples_per_class
    if batch % each:
        raise InputError(f"study, {where}: a batch of {batch} images does not divide into classes of {each}")
    return batch // each


def _with_seed(config: ImageRunConfig, seed: int) -> ImageRunConfig:
    return config.model_copy(update={"loop": config.loop.model_copy(update={"seed": seed})})


def _identity(config: ImageRunConfig) -> dict[str, Any]:
    """Return what of a configuration decides its result, but the seed."""
    values = config.model_dump(mode="json", exclude={"name", "evaluation"})
    for group, keys in NOT_IN_KEY.items():
        values[group] = {key: value for key, value in values[group].items() if key not in keys}
    return values


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
