"""An encoder on disk: `config.json` and `encoder.safetensors`; nothing is executed, and no other file needed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from longview.config import parse
from longview.errors import InputError
from longview.files import atomic_file, write_json
from longview.models.encoders.encoder import EncoderConfig, ImageEncoder

SCHEMA_VERSION = 1
WEIGHTS = "encoder.safetensors"
REMEDY = "point at a directory written by save_encoder or `longview train`"


def save_encoder(out: str | Path, encoder: ImageEncoder) -> None:
    """Write `encoder` to the directory `out`; the weights first, so that a config always has some."""
    save_encoder_weights(Path(out) / WEIGHTS, encoder)
    config = encoder.resolved().model_dump(mode="json")
    write_json(Path(out) / "config.json", {"schema_version": SCHEMA_VERSION, **config})


def save_encoder_weights(file: Path, encoder: ImageEncoder) -> None:
    """Write the weights of `encoder` to the safetensors `file`, atomically."""
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in encoder.state_dict().items()}
    with atomic_file(file) as work:
        work.write_bytes(save(tensors, metadata={"format": "longview"}))


def load_encoder(path: str | Path, *, device: str | torch.device = "cpu") -> ImageEncoder:
    """Load the encoder in directory `path` onto `device`, in eval mode, whatever device trained it.

    Raises:
        InputError: a file is missing, damaged, of another version, or does not fit the other; it is named.
    """
    file = Path(path) / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no encoder there (no config.json); {REMEDY}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: damaged ({error}); {REMEDY}") from None
    if not isinstance(values, dict) or values.pop("schema_version", None) != SCHEMA_VERSION:
        raise InputError(f"{file}: not schema version {SCHEMA_VERSION} of an encoder; {REMEDY}")
    encoder = parse(EncoderConfig, values, str(file)).build()
    load_encoder_weights(Path(path) / WEIGHTS, encoder)
    return encoder.to(device).eval()


def load_encoder_weights(file: Path, encoder: ImageEncoder) -> None:
    """Load the weights in the safetensors `file` into `encoder`.

    Raises:
        InputError: the file is missing, damaged, or of another shape.
    """
    try:
        with safe_open(str(file), framework="pt") as tensors:
            found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{file}: missing; {REMEDY}") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: damaged ({error}); {REMEDY}") from None
    wanted = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in found.items()}
    wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{file}: does not fit its config: {name} has shape {given.get(name)}, the config says {wanted.get(name)} "
            f"({len(wrong)} such); {REMEDY}"
        )
    encoder.load_state_dict(found)
