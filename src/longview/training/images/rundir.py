"""The run directory of images, which is also the encoder's: everything `embed` and `evaluate` need, nothing executed.

* `config.json`: the `ImageRunConfig`; its `task` says that it is of images.  * `data.json`: the data set trained on.
* `encoder/`: the best weights with the encoder's own config (`longview.training.images.load_encoder` opens it).
* `result.json`, `card.md`, `log.jsonl`, `drift.json`: what came out.  * `checkpoint/`: to resume.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longview.config import parse
from longview.data.images import ImageSet
from longview.data.images.framing import Framing
from longview.errors import InputError
from longview.files import write_json
from longview.models.encoders import ImageEncoder
from longview.training.images.config import ImageRunConfig
from longview.training.images.encoder_files import load_encoder
from longview.training.rundir import SCHEMA_VERSION, read_json
from longview.training.weights import REMEDY

ENCODER = "encoder"


@dataclass(frozen=True)
class LoadedImageRun:
    """An encoder as trained, with how it sees images; `data` is what `describe_images` made of its data set."""

    path: Path
    encoder: ImageEncoder
    config: ImageRunConfig
    framing: Framing
    data: dict[str, Any]

    def open_images(self, path: str | Path | None = None) -> ImageSet:
        """Open the data set trained on, at `path` where it has moved.

        Raises:
            InputError: it is not there, or is another one.
        """
        place = Path(path or self.data["path"])
        if path is None and not place.exists():
            raise InputError(f"{self.path}: its data set is no longer at {place}; say where it is: --data")
        images = ImageSet.open(place)
        check_images(self.path, self.data, images)
        return images


def is_image_run(path: str | Path) -> bool:
    """Return whether the directory `path` is a run on images (as opposed to one on logs, or to nothing)."""
    try:
        values = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("task") == "images"


def check_images(run: Path, recorded: dict[str, Any], images: ImageSet) -> None:
    """Refuse `images` where they are not the data set `recorded` in the run directory `run`."""
    if images.fingerprint != recorded["fingerprint"]:
        raise InputError(
            f"{run}: trained on {recorded['name']} (fingerprint {recorded['fingerprint']}) but {images.path} is "
            f"{images.meta.name} (fingerprint {images.fingerprint}); results would not be comparable: use the data set "
            f"at {recorded['path']}, or train a new model"
        )


def describe_images(images: ImageSet) -> dict[str, Any]:
    """Return what a run records of its data set."""
    return {
        "schema_version": SCHEMA_VERSION,
        "path": str(images.path.resolve()),
        "name": images.meta.name,
        "layout": images.meta.layout,
        "fingerprint": images.fingerprint,
        "num_images": images.meta.num_images,
        "num_classes": images.meta.num_classes,
    }


def start_image_run(out: Path, config: ImageRunConfig, images: ImageSet, framing: Framing) -> None:
    """Write what is known of a run before training."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "data.json", {**describe_images(images), "framing": framing.model_dump(mode="json")})
    write_json(out / "config.json", {"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")})


def read_image_config(path: Path) -> ImageRunConfig:
    """Return the configuration of the run directory `path`.

    Raises:
        InputError: missing, damaged, of another version or of logs, or with an unknown key.
    """
    values = read_json(path / "config.json")
    if values.get("task") != "images":
        raise InputError(f"{path}: a run on logs, not on images; {REMEDY}")
    return parse(ImageRunConfig, {k: v for k, v in values.items() if k != "schema_version"}, str(path / "config.json"))


def load_image_run(path: str | Path, *, device: str | torch.device = "cpu") -> LoadedImageRun:
    """Load the run directory `path` onto `device`, in eval mode, whatever device trained it.

    Raises:
        InputError: no run directory of images, or a file that is missing, damaged, or does not fit; it is named.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such directory; {REMEDY}")
    config, data = read_image_config(path), read_json(path / "data.json")
    framing = parse(Framing, data.get("framing", {}), str(path / "data.json"))
    if not (path / ENCODER).is_dir():
        raise InputError(f"{path}: training has not saved a model here yet: let it go on with --resume, or {REMEDY}")
    return LoadedImageRun(path, load_encoder(path / ENCODER, device=device), config, framing, data)
