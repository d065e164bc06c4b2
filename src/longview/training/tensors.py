"""Tensors by name, and writing them, with the errors of the disk as what they are."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write contiguous CPU `tensors` to the safetensors file `path`.

    Raises:
        OSError: the disk is full, or another problem of the system, which safetensors hides in its own error.
    """
    try:
        safetensors.save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        found = SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors named `prefix.…`, without the prefix."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}
