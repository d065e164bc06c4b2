"""The weights of a module in a safetensors file: written whole or not at all, read with errors that name the file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from longview.errors import InputError
from longview.files import atomic_file
from longview.training.tensors import save_file

REMEDY = "point at a directory written by `longview train`, or train again"


def save_weights(file: Path, module: nn.Module, **metadata: str) -> None:
    """Write the weights of `module` to `file`."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    with atomic_file(file) as work:
        save_file(tensors, work, metadata={"format": "longview", **metadata})


def load_weights(file: Path, module: nn.Module) -> None:
    """Load the weights in `file` into `module`.

    Raises:
        InputError: the file is missing, damaged, or of another shape.
    """
    try:
        with safe_open(str(file), framework="pt") as tensors:
            found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(
            f"{file}: missing, so training has not saved a model here yet: let it go on with --resume, or {REMEDY}"
        ) from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: damaged ({error}); {REMEDY}") from None
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in found.items()}
    wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{file}: does not fit config.json: {name} has shape {given.get(name)}, the config says "
            f"{wanted.get(name)} ({len(wrong)} such); {REMEDY}"
        )
    module.load_state_dict(found)
