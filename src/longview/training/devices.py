"""Where a run computes, and how its random streams are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic

from longview.errors import InputError, suggestion


def device_named(name: str | torch.device) -> torch.device:
    """Return the device of a name.

    Raises:
        InputError: no such device, or none here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:  # whose message lists everything that torch was ever built for
        near = suggestion(str(name), ("cpu", "cuda"))
        raise InputError(f"no device {str(name)!r}{near}: choose cpu, cuda or one of several GPUs, cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda is not available here (see `longview doctor`); use --device cpu")
    return device


@contextmanager
def reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the random streams for the block and give the caller's back; deterministic algorithms on a CPU."""
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = deterministic
    fill = memory.fill_uninitialized_memory
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        if device.type == "cpu":
            torch.use_deterministic_algorithms(True)
            memory.fill_uninitialized_memory = False  # costs passes and changes no result
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            memory.fill_uninitialized_memory = fill


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's random streams, for a checkpoint."""
    saved = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        saved["random.cuda"] = torch.cuda.get_rng_state(device)
    return saved


def load_random_tensors(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Undo `random_tensors`."""
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
