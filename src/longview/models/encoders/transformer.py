"""Backbones of the `transformers` library, from a local directory or a configuration; nothing is ever downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from longview.config import Config
from longview.errors import InputError
from longview.models.encoders.features import Features, Stage

EXTRA = "backbone kind transformers needs the library: pip install 'longview[images]'"
CLASS_TOKENS = ("cls_token", "class_embedding")


class TransformersConfig(Config):
    """A vision model of `transformers` (`AutoModel`): its weights from a directory, or fresh ones from a config."""

    kind: Literal["transformers"] = "transformers"
    directory: Path | None = Field(default=None, description="config.json and model.safetensors, on this machine")
    architecture: dict[str, Any] | None = Field(
        default=None, description="model_type and sizes as in config.json; weights are drawn"
    )

    @model_validator(mode="after")
    def _one_source(self) -> TransformersConfig:
        if (self.directory is None) == (self.architecture is None):
            raise ValueError("give directory (pretrained weights) or architecture (fresh weights), not both or none")
        return self

    def build(self) -> TransformersBackbone:
        return TransformersBackbone(self)


class TransformersBackbone(nn.Module):
    """Images (B, channels, H, W) to features: of a map (ResNet, ConvNeXt) or of tokens (ViT, DINOv2, SigLIP, Swin).

    Raises:
        InputError: no `transformers`, no such directory, an unknown architecture, weights that are missing, or a
            model that does not read images.
    """

    def __init__(self, config: TransformersConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _pretrained(config.directory) if config.directory else _fresh(config.architecture or {})
        if getattr(self.model, "main_input_name", None) != "pixel_values":
            raise InputError(f"{_name(config)}: {type(self.model).__name__} does not read images")
        pooler = getattr(self.model, "pooler", None)
        if pooler is not None and any(True for _ in pooler.parameters()):
            self.model.pooler = None  # the head pools: parameters nothing uses would get no gradient
        names = [name.rpartition(".")[2] for name, _ in self.model.named_parameters()]
        self.has_summary = any(name in CLASS_TOKENS for name in names)
        registers = getattr(self.model.config, "num_register_tokens", 0) or 0
        self.special = int(self.has_summary) + int("distillation_token" in names) + int(registers)
        self.channels = int(getattr(self.model.config, "num_channels", 3))
        sizes = getattr(self.model.config, "hidden_sizes", None)
        self.width = int(sizes[-1] if sizes else self.model.config.hidden_size)

    @property
    def architecture(self) -> dict[str, Any]:
        """The configuration that builds this backbone anew, without its directory."""
        values: dict[str, Any] = self.model.config.to_diff_dict()
        return values | {"model_type": self.model.config.model_type}

    @property
    def image_size(self) -> int | None:
        """The size its positions are made for, or None where any will do."""
        size = getattr(self.model.config, "image_size", None)
        return int(size) if isinstance(size, int) else None

    def forward(self, images_BCHW: Tensor) -> Features:
        """Return (B, places, width), and the class token where there is one.

        Raises:
            InputError: images of another number of channels.
        """
        if images_BCHW.shape[1] != self.channels:
            raise InputError(f"images {tuple(images_BCHW.shape)}: {_name(self.config)} reads {self.channels} channels")
        out = self.model(pixel_values=images_BCHW).last_hidden_state
        if out.dim() == 4:
            return Features.of_map(out)
        return Features(out[:, self.special :], out[:, 0] if self.has_summary else None)

    def stages(self) -> Sequence[Stage]:
        """Return the stem, then each layer (or stage of a convolutional model); what follows is with the last.

        The layers are the longest list of modules nearest the top; what is registered before it is the stem.
        """
        lists = [(name, part) for name, part in self.model.named_modules() if isinstance(part, nn.ModuleList)]
        if not lists:
            raise InputError(f"{_name(self.config)}: {type(self.model).__name__} has no list of layers to divide")
        depth = min(name.count(".") for name, _ in lists)
        path, layers = max((pair for pair in lists if pair[0].count(".") == depth), key=lambda pair: len(pair[1]))
        names = ["stem", *(f"layer {number}" for number in range(len(layers)))]
        parameters: list[dict[str, nn.Parameter]] = [{} for _ in names]
        modules: list[list[nn.Module]] = [[] for _ in names]
        place = 0
        for name, parameter in self.model.named_parameters():
            place = _stage(name, path, place, len(layers))
            parameters[place][f"model.{name}"] = parameter
        place = 0
        for name, module in self.model.named_modules():
            if path == name or path.startswith(f"{name}.") or not name:
                continue  # holds the layers themselves
            place = _stage(name, path, place, len(layers))
            modules[place].append(module)
        return [Stage(*parts) for parts in zip(names, parameters, map(tuple, modules), strict=True)]


def _stage(name: str, path: str, current: int, layers: int) -> int:
    """Return the stage of what is called `name`, which follows something of stage `current`."""
    if name.startswith(f"{path}."):
        return 1 + int(name[len(path) + 1 :].split(".")[0])
    return layers if current else 0


def _name(config: TransformersConfig) -> str:
    return str(config.directory or (config.architecture or {}).get("model_type"))


def _library() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise InputError(EXTRA) from None


def _fresh(architecture: dict[str, Any]) -> Any:
    library, values = _library(), dict(architecture)
    kind = values.pop("model_type", None)
    if kind is None:
        raise InputError("backbone.architecture: model_type is missing, for example vit, dinov2 or resnet")
    try:
        config = library.AutoConfig.for_model(kind, **values)
        return library.AutoModel.from_config(config)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"backbone.architecture: transformers cannot build {kind!r}: {error}") from None


def _pretrained(directory: Path) -> Any:
    if not (directory / "config.json").is_file():
        raise InputError(
            f"{directory}: no config.json there; backbone.directory is a directory of transformers on this machine, "
            "as its save_pretrained writes it (nothing is downloaded)"
        )
    library = _library()
    local = {"local_files_only": True, "trust_remote_code": False}  # no code of the directory is run
    try:
        config = library.AutoConfig.from_pretrained(directory, **local)
        config = getattr(config, "vision_config", config)  # of a model of images and text: its image side
        model, loading = library.AutoModel.from_pretrained(
            directory, config=config, **local, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{directory}: transformers cannot load it: {error}") from None
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise InputError(
            f"{directory}: holds no weights for {missing[0]} ({len(missing)} such), which would stay random: "
            "is it of this architecture?"
        )
    return model.float()
