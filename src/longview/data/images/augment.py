"""Random changes of images, as tensor operations on a whole batch; drawn once a batch from (seed, epoch, step).

What an image gets depends on its place in the batch of all ranks and on (seed, epoch, step) only, so a run goes on
exactly after a restart, and alike on another number of ranks.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from longview.config import Config

Share = tuple[float, float]
KNOTS = 4  # a side, of the net whose points `warp` moves
FIRST_DRAWS = 13  # of the changes there were before warp: drawn by themselves, so that they stay as they were
DRAWS = FIRST_DRAWS + 4 + 2 * KNOTS * KNOTS  # uniform numbers an image


class Augment(Config):
    """Random changes; the defaults change nothing.

    Example:
        >>> Augment(crop_area=(0.6, 1.0), flip=0.5).changes
        True
    """

    crop_area: Share = Field(default=(1.0, 1.0), description="share of the image that a random crop keeps, from, to")
    crop_aspect: Share = Field(default=(1.0, 1.0), description="width / height of the crop, from, to; drawn on a log")
    flip: float = Field(default=0.0, ge=0, le=1, description="probability of a mirror image")
    rotation: float = Field(default=0.0, ge=0, le=180, description="degrees, to either side")
    shift: float = Field(default=0.0, ge=0, le=1, description="share of a side, in either direction, on both axes")
    scale: Share = Field(default=(1.0, 1.0), description="size of what is seen, from, to; drawn on a log")
    stretch: Share = Field(default=(1.0, 1.0), description="width by height of what is seen, from, to; drawn on a log")
    shear: float = Field(default=0.0, ge=0, le=60, description="degrees that upright lines lean, to either side")
    warp: float = Field(
        default=0.0, ge=0, le=0.25, description="share of a side that points of a 4 × 4 net move, with all between them"
    )
    stroke: float = Field(
        default=0.0, ge=0, le=1, description="share of a pixel that dark lines get thicker or thinner on either side"
    )
    erase: float = Field(default=0.0, ge=0, le=1, description="probability that a rectangle is filled")
    erase_area: Share = Field(default=(0.02, 0.2), description="share of the image that the rectangle covers, from, to")
    fill: float = Field(default=1.0, ge=0, le=1, description="what is seen beyond the image; 1 is white")
    oversize: float = Field(
        default=1.0, ge=1, le=2, description="files are decoded this much larger than the encoder's size, for crops"
    )

    @model_validator(mode="after")
    def _ranges(self) -> Augment:
        for name in ("crop_area", "crop_aspect", "erase_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name != "crop_aspect" and high > 1):
                raise ValueError(f"{name}: expected 0 < from <= to{'' if name == 'crop_aspect' else ' <= 1'}")
        for name in ("scale", "stretch"):
            low, high = getattr(self, name)
            if not 0.1 <= low <= high <= 10:
                raise ValueError(f"{name}: expected 0.1 <= from <= to <= 10")
        return self

    @property
    def moves(self) -> bool:
        """Whether pixels change their place."""
        same = self.crop_area == (1.0, 1.0) and self.crop_aspect == (1.0, 1.0)
        return not same or max(self.flip, self.rotation, self.shift, self.warp) > 0 or self._deforms

    @property
    def _deforms(self) -> bool:
        return self.shear > 0 or self.scale != (1.0, 1.0) or self.stretch != (1.0, 1.0)

    @property
    def changes(self) -> bool:
        """Whether anything is done at all."""
        return self.moves or self.erase > 0 or self.stroke > 0

    def draws(self, number: int, seed: int, epoch: int, step: int) -> Tensor:
        """Return (number, DRAWS) uniform float32 numbers of 0 to 1 for a batch of `number` images."""
        state = np.random.SeedSequence((seed, epoch, step)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        first = torch.rand(number, FIRST_DRAWS, generator=generator)
        return torch.cat([first, torch.rand(number, DRAWS - FIRST_DRAWS, generator=generator)], dim=1)

    def apply(self, images: Tensor, draws: Tensor, size: int) -> Tensor:
        """Return the images (B, C, H, W), of 0 to 1, changed as `draws` (B, DRAWS) say, as (B, C, size, size)."""
        draws = draws.to(images.device)
        if self.moves or images.shape[-2:] != (size, size):
            grid = functional.affine_grid(self._affine(draws), [len(images), 1, size, size], align_corners=False)
            if self.warp:
                grid = grid + self._net(draws, size)
            # Beyond the image grid_sample sees 0: move `fill` there and back.
            images = functional.grid_sample(images - self.fill, grid, align_corners=False) + self.fill
        if self.stroke > 0:
            images = self._stroked(images, draws)
        return self._erased(images, draws) if self.erase > 0 else images

    def _affine(self, draws: Tensor) -> Tensor:
        """Return (B, 2, 3): where in the image, −1 to 1, each place of the result comes from."""
        area = _between(draws[:, 0], *self.crop_area)
        aspect = _log_between(draws[:, 1], *self.crop_aspect)
        width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        centre_x = (1 - width) * (2 * draws[:, 2] - 1) + 2 * self.shift * (2 * draws[:, 6] - 1)
        centre_y = (1 - height) * (2 * draws[:, 3] - 1) + 2 * self.shift * (2 * draws[:, 7] - 1)
        mirror = torch.where(draws[:, 4] < self.flip, -1.0, 1.0)
        angle = (2 * draws[:, 5] - 1) * math.radians(self.rotation)
        cosine, sine = angle.cos(), angle.sin()
        row_x = torch.stack([width * cosine * mirror, -width * sine, centre_x], dim=1)
        row_y = torch.stack([height * sine * mirror, height * cosine, centre_y], dim=1)
        affine = torch.stack([row_x, row_y], dim=1)
        if self._deforms:
            affine = torch.cat([affine[:, :, :2] @ self._deformation(draws), affine[:, :, 2:]], dim=2)
        return affine

    def _deformation(self, draws: Tensor) -> Tensor:
        """Return (B, 2, 2): where a place comes from by scale, stretch and shear, before it is turned."""
        scale = _log_between(draws[:, 13], *self.scale)
        root = _log_between(draws[:, 14], *self.stretch).sqrt()
        lean = torch.tan((2 * draws[:, 15] - 1) * math.radians(self.shear))
        wide, high = 1 / (scale * root), root / scale
        return torch.stack([wide, lean * high, torch.zeros_like(wide), high], dim=1).view(-1, 2, 2)

    def _net(self, draws: Tensor, size: int) -> Tensor:
        """Return (B, size, size, 2): how far each place of the result is moved, smooth between moved points."""
        moved = 2 * self.warp * (2 * draws[:, FIRST_DRAWS + 4 :] - 1).view(-1, 2, KNOTS, KNOTS)
        net = functional.interpolate(moved, (size, size), mode="bicubic", align_corners=True)
        return net.permute(0, 2, 3, 1)

    def _stroked(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return images part of the way to those whose dark, or light, lines are a pixel wider on either side."""
        share = (self.stroke * (2 * draws[:, 16] - 1)).view(-1, 1, 1, 1)
        light = functional.max_pool2d(images, 3, stride=1, padding=1)
        dark = -functional.max_pool2d(-images, 3, stride=1, padding=1)
        return torch.lerp(images, torch.where(share > 0, dark, light), share.abs())

    def _erased(self, images: Tensor, draws: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        area = _between(draws[:, 9], *self.erase_area)
        aspect = _log_between(draws[:, 10], 0.3, 1 / 0.3)  # the range of Zhong et al., arXiv 1708.04896
        wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        left, top = draws[:, 11] * (1 - wide), draws[:, 12] * (1 - high)
        x = (torch.arange(width, device=images.device) + 0.5) / width
        y = (torch.arange(height, device=images.device) + 0.5) / height
        columns = (x >= left[:, None]) & (x < (left + wide)[:, None])
        rows = (y >= top[:, None]) & (y < (top + high)[:, None])
        chosen = (draws[:, 8] < self.erase)[:, None, None]
        return images.masked_fill((chosen & rows[:, :, None] & columns[:, None, :]).unsqueeze(1), self.fill)


def _between(draw: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * draw


def _log_between(draw: Tensor, low: float, high: float) -> Tensor:
    return torch.exp(_between(draw, math.log(low), math.log(high)))
