"""From an image of any size to a square tensor: fit, resize, channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from longview.config import Config
from longview.data.images.decode import Mode, Pixels, require_pillow

if TYPE_CHECKING:
    from PIL.Image import Image


Fit = Literal["crop", "pad", "stretch"]
LUMA = (0.299, 0.587, 0.114)


class Framing(Config):
    """How an image becomes a square of `size` pixels a side with 1 or 3 channels, of values from 0 to 1.

    `fit`: `crop` scales the shorter side to `size` and cuts the middle, `pad` scales the longer side and fills up with
    white, `stretch` changes the proportions. Scaling is bilinear with antialiasing. Mean and standard deviation are
    the encoder's own affair.

    Example:
        >>> Framing(size=28, channels=1).shape
        (1, 28, 28)
    """

    size: int = Field(default=224, ge=1, le=4096)
    channels: Literal[1, 3] = 3
    fit: Fit = "crop"

    @property
    def mode(self) -> Mode:
        """Pillow's name of the channels."""
        return "L" if self.channels == 1 else "RGB"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a tensor."""
        return self.channels, self.size, self.size

    def pixels(self, image: Image) -> Pixels:
        """Return `image`, of Pillow's mode L or RGB, as (size, size, channels) uint8."""
        return square(image, self.size, self.fit, self.mode)

    def unit(self, pixels: Tensor) -> Tensor:
        """Return (B, H, W, c) uint8 as (B, C, H, W) float32 of 0 to 1; grey becomes colour and colour grey (BT.601)."""
        values = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255
        if values.shape[1] == 3 and self.channels == 1:
            return torch.einsum("bchw,c->bhw", values, values.new_tensor(LUMA)).unsqueeze(1)
        return values.expand(-1, self.channels, -1, -1)


def square(image: Image, size: int, fit: Fit, mode: Mode) -> Pixels:
    """Return `image` scaled and cut or filled to (size, size, channels) uint8."""
    pillow = require_pillow()
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (size, size):
        width, height = image.size
        bilinear = pillow.Resampling.BILINEAR
        if fit == "pad":
            scale = size / max(width, height)
            inner = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), bilinear)
            image = pillow.new(mode, (size, size), "white")
            image.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
        else:
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side) if fit == "crop" else None
            image = image.resize((size, size), bilinear, box=box, reducing_gap=3.0)
    pixels = np.asarray(image, np.uint8)
    return pixels[:, :, None] if mode == "L" else pixels
