"""Checkpoints: one safetensors file and one JSON file a checkpoint, the JSON written last.

The tensors of step n are in `step-n.safetensors`, the rest in `step-n.json`. A checkpoint exists once its JSON
does; only then are older ones removed, so a process killed at any moment leaves a whole one behind. Nothing is a
pickle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from longview.errors import InputError
from longview.files import atomic_file, write_json
from longview.training.tensors import save_file

SCHEMA_VERSION = 1


def save_checkpoint(directory: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` and remove older ones; return the path of its JSON file."""
    base = directory / f"step-{step:09d}"
    with atomic_file(base.with_suffix(".safetensors")) as work:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, work)
    write_json(base.with_suffix(".json"), {"schema_version": SCHEMA_VERSION, "step": step, **values})
    for old in directory.glob("step-*"):
        if old.stem != base.name:
            old.unlink(missing_ok=True)
    return base.with_suffix(".json")


def latest_checkpoint(directory: Path) -> Path | None:
    """Return the JSON file of the newest whole checkpoint in `directory`, or None."""
    whole = [path for path in directory.glob("step-*.json") if path.with_suffix(".safetensors").exists()]
    return max(whole, default=None)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and values of the checkpoint whose JSON file is `path`.

    Raises:
        InputError: a file that is damaged or of another schema version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(path.with_suffix(".safetensors"))
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: damaged checkpoint ({error}); start the run again without resume") from None
    if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{path}: not checkpoint schema {SCHEMA_VERSION}; resume with the version that wrote it")
    return tensors, values
