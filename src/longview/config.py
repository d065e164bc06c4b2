"""Configuration: frozen pydantic models, one a module; YAML files and `--set key=value` on top.

Unknown keys are errors that name the nearest known key; every message names the file or option at fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from longview.errors import InputError, suggestion


class Config(BaseModel):
    """Base of every configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


C = TypeVar("C", bound=Config)


def parse(kind: type[C], values: Mapping[str, Any], where: str) -> C:
    """Validate `values` as a `kind`; `where` names their origin in error messages.

    Raises:
        InputError: an unknown key (with the nearest known one), a wrong type or a value out of range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: " + "; ".join(_explain(kind, dict(e)) for e in error.errors())) from None


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping from `path`.

    Raises:
        InputError: no such file, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of keys to values, found {type(values).__name__}")
    return values


def override(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return `values` with each `key.path=value` of `assignments` set; values are read as YAML.

    Example:
        >>> override({"model": {"layers": 2}}, ["model.layers=8", "optimiser.rate=1e-3"])
        {'model': {'layers': 8}, 'optimiser': {'rate': 0.001}}

    Raises:
        InputError: an assignment without `=`, or a path through a value that is not a mapping.
    """
    merged = _copy(values)
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not key:
            raise InputError(f"--set {assignment!r}: expected key=value, for example model.layers=4")
        *parents, leaf = key.split(".")
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"--set {assignment!r}: {parent!r} is a value, not a group of keys")
        node[leaf] = _scalar(text, assignment)
    return merged


def _scalar(text: str, assignment: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {assignment!r}: not a YAML value: {error}") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _explain(kind: type[BaseModel], error: dict[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "value_error":  # a rule of ours, whose message says what was given
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    if error["type"] != "extra_forbidden":
        given = "" if error["type"] == "missing" else f", got {error['input']!r}"
        return f"{key or 'value'}: {error['msg']}{given}"
    allowed = _fields(kind, location[:-1])
    return f"unknown key {key!r}{suggestion(location[-1], allowed)}; allowed: {', '.join(sorted(allowed))}"


def _fields(kind: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(part)
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        kind = nested[0]
    return list(kind.model_fields)
