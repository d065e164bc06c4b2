"""From pixels as they are stored to the images of a batch: turned, framed, changed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from longview.data.images.augment import Augment
from longview.data.images.framing import Framing

QUARTERS = 4  # turns of an image, each a class of its own where turned images are


def make_images(
    pixels: Tensor,
    framing: Framing,
    augment: Augment | None = None,
    draws: Tensor | None = None,
    turns: Tensor | None = None,
) -> Tensor:
    """Return images (B, C, size, size) float32 of 0 to 1.

    Args:
        pixels: (B, H, W, c) uint8.
        framing: size and channels.
        augment: random changes, as `draws` of `Augment.draws` says.
        draws: (B, DRAWS); needed where `augment` changes anything.
        turns: (B,) int64, quarter turns of each image to the left, 0 to 3; needs square pixels.
    """
    if turns is not None:
        pixels = turned(pixels, turns)
    images = framing.unit(pixels)
    size = framing.size
    if images.shape[-2:] != (size, size) and not (augment is not None and augment.moves):
        images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    if augment is not None and augment.changes:
        assert draws is not None
        images = augment.apply(images, draws, size)
    return images


def turned(pixels: Tensor, turns: Tensor) -> Tensor:
    """Return each of `pixels` (B, S, S, c) by its number of quarter turns to the left.

    Example:
        >>> turned(torch.tensor([[[[1], [2]], [[3], [4]]]]), torch.tensor([1]))[0, :, :, 0].tolist()
        [[2, 4], [1, 3]]
    """
    found = pixels
    for quarter in range(1, QUARTERS):
        here = (turns == quarter).view(-1, 1, 1, 1)
        found = torch.where(here, torch.rot90(pixels, quarter, (1, 2)), found)
    return found
