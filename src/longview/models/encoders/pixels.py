"""Decoded pixels to what a backbone reads, as tensor operations, so that an exported program can begin with bytes.

Framing is what `longview.data.images.Framing` does with Pillow while it decodes, for a batch of tensors of any size.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from longview.config import parse
from longview.data.images.framing import LUMA, Framing
from longview.errors import InputError


class PreprocessConfig(Framing):
    """How an image is framed, and how its values are normalised: v of 0 to 1 becomes (v − mean) / std."""

    mean: tuple[float, ...] = Field(default=(0.5,), description="one for all channels, or one each")
    std: tuple[float, ...] = Field(default=(0.5,))

    @model_validator(mode="after")
    def _numbers(self) -> PreprocessConfig:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name}: 1 or {self.channels} numbers expected, got {len(values)}")
        if min(self.std) <= 0:
            raise ValueError("std: above 0 expected")
        return self


class PixelInput(nn.Module):
    """Images (B, 1 or 3, H, W), uint8 or floating point of 0 to 1, to normalised float32 (B, channels, size, size).

    It differs from Pillow, which rounds to bytes after scaling, by about one level of 255 and, for `crop`, by half a
    pixel where an odd number of them is cut away.

    Raises:
        InputError: the backbone reads other channels than `config` gives.
    """

    mean: Tensor
    std: Tensor
    luma: Tensor

    def __init__(self, config: PreprocessConfig, channels: int) -> None:
        super().__init__()
        if config.channels != channels:
            raise InputError(
                f"encoder.preprocess.channels is {config.channels} but the backbone reads {channels}: set both alike"
            )
        self.config = config
        for name, values in (("mean", config.mean), ("std", config.std), ("luma", LUMA)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return (B, channels, size, size) float32.

        Raises:
            InputError: another shape or dtype.
        """
        bytes_given = images_BCHW.dtype == torch.uint8
        shaped = images_BCHW.dim() == 4 and images_BCHW.shape[1] in (1, 3)
        if not shaped or not (bytes_given or images_BCHW.is_floating_point()):
            raise InputError(
                f"images {tuple(images_BCHW.shape)} {images_BCHW.dtype}: expected (batch, 1 or 3, height, width), "
                "uint8 or floating point of 0 to 1"
            )
        x = images_BCHW.float() / 255 if bytes_given else images_BCHW.float()
        if x.shape[1] > self.config.channels:
            x = (x * self.luma).sum(1, keepdim=True)
        elif x.shape[1] < self.config.channels:
            x = x.expand(-1, self.config.channels, -1, -1)
        return (self._fit(x) - self.mean) / self.std

    def _fit(self, x: Tensor) -> Tensor:
        size, (height, width) = self.config.size, x.shape[2:]
        if not torch.compiler.is_exporting() and (height, width) == (size, size):
            return x  # interpolation would change nothing
        if self.config.fit == "stretch":
            return _scale(x, size, size)
        if self.config.fit == "crop":
            side = torch.sym_min(height, width)  # type: ignore[no-untyped-call]
            pixels = torch.arange(side, device=x.device)  # by index: a slice makes export ask which side is shorter
            x = x.index_select(2, pixels + (height - side) // 2).index_select(3, pixels + (width - side) // 2)
            return _scale(x, size, size)
        longer = torch.sym_max(height, width)  # type: ignore[no-untyped-call]
        inner = [torch.sym_max(1, (2 * side * size + longer) // (2 * longer)) for side in (height, width)]  # type: ignore[no-untyped-call]
        top, left = ((size - side) // 2 for side in inner)
        x = _scale(x, *inner)
        return F.pad(x, (left, size - inner[1] - left, top, size - inner[0] - top), value=1.0)  # white


def _scale(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", antialias=True)


def preprocess_of(directory: Path) -> PreprocessConfig:
    """Return what `preprocessor_config.json` of a transformers model directory says: size, mean, std, crop or stretch.

    A centre crop after scaling to a larger size becomes a crop of the largest square.

    Raises:
        InputError: the file is missing, damaged, or does not say it.
    """
    file = directory / "preprocessor_config.json"
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        crops = bool(said.get("do_center_crop")) and "crop_size" in said
        size = said["crop_size"] if crops else said["size"]
        if isinstance(size, dict):
            crops = crops or "shortest_edge" in size
            size = size.get("height", size.get("shortest_edge"))
        values = {"size": size, "mean": said["image_mean"], "std": said["image_std"]}
    except FileNotFoundError:
        raise InputError(f"{file}: missing, so size, mean and std are unknown: set encoder.preprocess") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: no size, mean and std in it ({error!r}): set encoder.preprocess") from None
    return parse(PreprocessConfig, values | {"fit": "crop" if crops else "stretch"}, str(file))
