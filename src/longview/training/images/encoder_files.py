"""An encoder on disk: `config.json` and `encoder.safetensors`; nothing is executed, and no other file needed."""

from __future__ import annotations

from pathlib import Path

import torch

from longview.config import parse
from longview.files import write_json
from longview.models.encoders import EncoderConfig, ImageEncoder
from longview.training.rundir import SCHEMA_VERSION, read_json
from longview.training.weights import load_weights, save_weights

WEIGHTS = "encoder.safetensors"


def save_encoder(out: str | Path, encoder: ImageEncoder) -> None:
    """Write `encoder` to the directory `out`; the weights first, so that a config always has some."""
    save_weights(Path(out) / WEIGHTS, encoder)
    config = encoder.resolved().model_dump(mode="json")
    write_json(Path(out) / "config.json", {"schema_version": SCHEMA_VERSION, **config})


def load_encoder(path: str | Path, *, device: str | torch.device = "cpu") -> ImageEncoder:
    """Load the encoder in directory `path` onto `device`, in eval mode, whatever device trained it.

    Raises:
        InputError: a file is missing, damaged, of another version, or does not fit the other; it is named.
    """
    file = Path(path) / "config.json"
    values = {name: value for name, value in read_json(file).items() if name != "schema_version"}
    encoder = parse(EncoderConfig, values, str(file)).build()
    load_weights(Path(path) / WEIGHTS, encoder)
    return encoder.to(device).eval()
