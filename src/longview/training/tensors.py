"""Tensors by name, and writing them, with the errors of the disk as what they are."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

import torch
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


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all numbers of floating `tensors`, on one device, are finite; it is waited for once.

    Example:
        >>> all_finite([torch.zeros(2), torch.tensor([1, 2])]), all_finite([torch.tensor([0.0, torch.nan])])
        (True, False)
    """
    given = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not given:
        return True
    largest = torch._foreach_norm(given, math.inf)  # one pass; NaN is the largest of all
    return bool(torch.stack([one.double() for one in largest]).isfinite().all())


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors named `prefix.…`, without the prefix."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}
