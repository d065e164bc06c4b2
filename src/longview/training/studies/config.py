"""What a study is: a base, what is varied, on which data, with which seeds; and the cells that follow from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from longview.config import Config
from longview.training.config import RunConfig, resolve_config
from longview.training.studies.fit import Choice
from longview.training.studies.grid import Settings, check_seeds, digest, identity, load_grid, resolved, with_seed

REFERENCE = "reference"


class StudyData(Config):
    """Either a prepared data set, or the rules of a simulated one, which is then written beside the study."""

    path: Path | None = Field(default=None, description="a prepared data set")
    lifelong: Settings | None = Field(default=None, description="`longview simulate --kind lifelong`, its settings")

    @model_validator(mode="after")
    def _one_of_them(self) -> StudyData:
        if (self.path is None) == (self.lifelong is None):
            raise ValueError("give either path or lifelong")
        return self


class ArmConfig(Config):
    """One model of a scaling study. `depths` and `lengths` add to `model.layers` and `model.max_length`."""

    settings: Settings = {}
    depths: dict[int, Settings] = Field(default={}, description="settings for a depth in place of model.layers")
    lengths: dict[int, Settings] = Field(default={}, description="further settings for a length")


class StudyConfig(Config):
    """A study. `parts` of an ablation: name → variant → settings; a variant without settings is the reference."""

    kind: Literal["ablation", "scaling"]
    name: str
    data: StudyData
    preset: str = "hstu-small"
    settings: Settings = Field(default={}, description="of all cells, over the preset")
    metric: str = "ndcg@10"
    choose: Choice = Field(default="best", description="weights evaluated: best on validation, or the last of training")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    parts: dict[str, dict[str, Settings]] = {}
    arms: dict[str, ArmConfig] = {}
    lengths: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    compare: tuple[str, str] | None = Field(default=None, description="arms: ratios are the second's over the first's")

    @model_validator(mode="after")
    def _whole(self) -> StudyConfig:
        if self.kind == "ablation" and not self.parts:
            raise ValueError("an ablation needs parts")
        if self.kind == "scaling" and not (self.arms and self.lengths and self.depths):
            raise ValueError("a scaling study needs arms, lengths and depths")
        check_seeds(self.seeds)
        for name in self.compare or ():
            if name not in self.arms:
                raise ValueError(f"compare: no arm {name!r}")
        return self

    def cells(self) -> list[Cell]:
        """Return the cells, all of one seed before the next, so that a study cut short is a study of fewer seeds.

        Raises:
            InputError: settings that are no configuration; the message names the cell.
        """
        kinds = list(self.kinds())
        return [
            Cell(labels, with_seed(config, seed), seed, aliases, self.choose)
            for seed in self.seeds
            for labels, config, aliases in _merged(kinds)
        ]

    def kinds(self) -> Iterator[tuple[dict[str, Any], RunConfig]]:
        """Yield the labels and the configuration of everything that is compared, in order, without seeds."""
        return self._ablation() if self.kind == "ablation" else self._scaling()

    def _ablation(self) -> Iterator[tuple[dict[str, Any], RunConfig]]:
        yield {"part": REFERENCE, "variant": REFERENCE}, self._resolve(REFERENCE, {})
        for part, variants in self.parts.items():
            for variant, settings in variants.items():
                yield {"part": part, "variant": variant}, self._resolve(f"{part}: {variant}", settings)

    def _scaling(self) -> Iterator[tuple[dict[str, Any], RunConfig]]:
        for length in self.lengths:
            for depth in self.depths:
                for name, arm in self.arms.items():
                    settings = {"model.max_length": length, **arm.settings}
                    settings |= arm.depths.get(depth, {"model.layers": depth}) | arm.lengths.get(length, {})
                    where = f"{name}, {length} events, {depth} layers"
                    yield {"arm": name, "length": length, "depth": depth}, self._resolve(where, settings)

    def _resolve(self, where: str, settings: Mapping[str, Any]) -> RunConfig:
        return resolved(resolve_config, self.preset, {**self.settings, **settings}, self.name, where)


@dataclass(frozen=True)
class Cell:
    """One training run of a study: its `labels`, and those of other cells that are the same run."""

    labels: dict[str, Any]
    config: RunConfig
    seed: int
    aliases: tuple[dict[str, Any], ...] = ()
    choose: Choice = "best"

    def key(self, fingerprint: str) -> str:
        """Return what names the run: the same configuration, data and seed have the same key, in any study."""
        return digest([identity(self.config), fingerprint, self.seed, self.choose])

    def time_key(self, fingerprint: str) -> str:
        """Return what names the configuration whose times are measured: that of all its seeds."""
        return digest([identity(self.config), fingerprint])


def load_study(path: str | Path, overrides: Sequence[str] = (), seeds: Sequence[int] | None = None) -> StudyConfig:
    """Read a study from a YAML file; `overrides` (`key=value`) are settings of all cells.

    Raises:
        InputError: no such file, an unknown key, or a study that lacks something.
    """
    return load_grid(StudyConfig, path, overrides, seeds)


def _merged(
    kinds: Sequence[tuple[dict[str, Any], RunConfig]],
) -> list[tuple[dict[str, Any], RunConfig, tuple[dict[str, Any], ...]]]:
    """Return each distinct configuration once, with the labels under which it occurs again."""
    found: dict[str, tuple[dict[str, Any], RunConfig, list[dict[str, Any]]]] = {}
    for labels, config in kinds:
        mark = json.dumps(identity(config), sort_keys=True)
        if mark in found:
            found[mark][2].append(labels)
        else:
            found[mark] = (labels, config, [])
    return [(labels, config, tuple(aliases)) for labels, config, aliases in found.values()]
