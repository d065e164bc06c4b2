"""Configuration: frozen pydantic models, one a module; YAML files and `--set key=value` on top.

Unknown keys are errors that name the nearest known key; every message names the file or option at fault.
"""

from __future__ import annotations

import re
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
    location, allowed, groups = _walk(kind, [str(part) for part in error["loc"]])
    key = ".".join(location)
    if error["type"] == "value_error":  # a rule of ours, whose message says what was given
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    if error["type"] == "union_tag_invalid":  # of a group that is chosen by one of its keys
        chosen, tags = error["ctx"]["discriminator"].strip("'"), error["ctx"]["expected_tags"]
        return f"{key}.{chosen}: Input should be one of {tags}, got {_near(error['ctx']['tag'], tags)}"
    if error["type"] == "union_tag_not_found":
        chosen = error["ctx"]["discriminator"].strip("'")
        tags = ", ".join(repr(group.model_fields[chosen].default) for group in groups)
        return f"{key}.{chosen} is missing, which says what the other keys of {key} are for; one of {tags}"
    if error["type"] == "literal_error":
        return f"{key}: {error['msg']}, got {_near(error['input'], error['ctx']['expected'])}"
    if error["type"] != "extra_forbidden":
        given = "" if error["type"] == "missing" else f", got {error['input']!r}"
        return f"{key or 'value'}: {error['msg']}{given}"
    return f"unknown key {key!r}{suggestion(location[-1], allowed)}; allowed: {', '.join(sorted(allowed))}"


def _near(given: Any, expected: str) -> str:
    """Return `given` with the nearest of the choices that `expected` quotes."""
    return repr(given) + suggestion(str(given), re.findall("'([^']*)'", expected))


def _walk(kind: type[BaseModel], location: list[str]) -> tuple[list[str], list[str], list[type[BaseModel]]]:
    """Return `location` as it is written, the keys that may stand at its end, and the groups that it may be.

    Inside a group that is chosen by one of its keys pydantic puts the choice into a location, which nobody writes.
    """
    written: list[str] = []
    groups, beside = [kind], list(kind.model_fields)
    chooser: str | None = None
    for part in location:
        if chooser is not None:
            groups, chooser = [group for group in groups if group.model_fields[chooser].default == part], None
            continue
        beside = list(groups[0].model_fields) if groups else []
        field = groups[0].model_fields.get(part) if groups else None
        found = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        groups = [one for one in found if isinstance(one, type) and issubclass(one, BaseModel)]
        chooser = field.discriminator if field is not None and isinstance(field.discriminator, str) else None
        written.append(part)
    return written, beside, groups
