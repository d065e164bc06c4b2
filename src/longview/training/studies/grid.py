"""What every grid of runs has in common: how it is read, how a cell is resolved, and what makes two cells the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from longview.config import Config, load_yaml, override, parse
from longview.errors import InputError

Settings = dict[str, Any]  # dotted keys of a configuration, as after --set
NOT_IN_KEY = {"loop": ("seed", "tensorboard", "checkpoint_every_steps")}

# Settings that came after the first cells, and what those did: no part of a cell's identity where they do the same.
LATER: dict[str, dict[str, Any]] = {
    "data.augment": {"scale": [1.0, 1.0], "stretch": [1.0, 1.0], "shear": 0.0, "warp": 0.0, "stroke": 0.0},
    "loss": {"actions": []},
    "model.layer": {"start": "random"},
}

Study = TypeVar("Study", bound=Config)
Run = TypeVar("Run", bound=Config)


def load_grid(
    kind: type[Study], path: str | Path, overrides: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> Study:
    """Read a study from a YAML file; `overrides` (`key=value`) are settings of all cells.

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
    return parse(kind, values, str(path))


def resolved(
    resolve: Callable[[str, Sequence[str]], Run], preset: str, settings: Mapping[str, Any], study: str, where: str
) -> Run:
    """Return `preset` with `settings`, named `where`.

    Raises:
        InputError: settings that are no configuration; the message names study and cell.
    """
    assignments = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    try:
        return resolve(preset, [*assignments, f"name={json.dumps(where)}"])
    except InputError as error:
        raise InputError(f"study {study!r}, {where}: {error}") from None


def with_seed(config: Run, seed: int) -> Run:
    """Return a run's configuration with another seed."""
    return config.model_copy(update={"loop": config.loop.model_copy(update={"seed": seed})})  # type: ignore[attr-defined]


def identity(config: Config, apart: Collection[str] = ("name",)) -> dict[str, Any]:
    """Return what of a run's configuration decides its result, but the seed; `apart` are sections that do not."""
    values = config.model_dump(mode="json", exclude=set(apart))
    for group, keys in NOT_IN_KEY.items():
        values[group] = {key: value for key, value in values[group].items() if key not in keys}
    for path, idle in LATER.items():
        section: Any = values
        for part in path.split("."):
            section = (section or {}).get(part)
        for key, value in idle.items():
            if section and section.get(key) == value:
                del section[key]
    return values


def digest(values: Sequence[Any]) -> str:
    """Return a short name of JSON values: equal values, in any study, have the same."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ValueError where a seed comes twice."""
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {list(seeds)} repeat")
