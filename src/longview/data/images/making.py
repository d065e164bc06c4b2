"""From pixels as they are stored to the images of a batch: turned, framed, changed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from longview.data.images.augment import Augment
from longview.data.images.framing import Framing

QUARTERS = 4
Turned = bool | Literal["mirrored"]  # which looks of an image are classes of their own; see `looks`


def looks(turned: Turned) -> int:
    """Return how many looks of each image are classes of their own: its quarter turns, and those of its mirror image.

    Look 0 is the image, 1 to 3 are its quarter turns to the left, 4 its mirror image, 5 to 7 the turns of that.

    Example:
        >>> [looks(turned) for turned in (False, True, "mirrored")]
        [1, 4, 8]
    """
    return {False: 1, True: QUARTERS, "mirrored": 2 * QUARTERS}[turned]


def make_images(
    pixels: Tensor,
    framing: Framing,
    augment: Augment | None = None,
    draws: Tensor | None = None,
    chosen: Tensor | None = None,
    turned: Turned = True,
) -> Tensor:
    """Return images (B, C, size, size) float32 of 0 to 1.

    Args:
        pixels: (B, H, W, c) uint8.
        framing: size and channels.
        augment: random changes, as `draws` of `Augment.draws` says.
        draws: (B, DRAWS); needed where `augment` changes anything.
        chosen: (B,) int64, which look of each image, less than `looks(turned)`; needs square pixels.
        turned: which looks there are.
    """
    if chosen is not None:
        pixels = looking(pixels, chosen, mirrored=turned == "mirrored")
    images = framing.unit(pixels)
    size = framing.size
    if images.shape[-2:] != (size, size) and not (augment is not None and augment.moves):
        images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    if augment is not None and augment.changes:
        assert draws is not None
        images = augment.apply(images, draws, size)
    return images


def looking(pixels: Tensor, chosen: Tensor, *, mirrored: bool = False) -> Tensor:
    """Return each of `pixels` (B, S, S, c) as its look `chosen` (B,) is; looks of 4 and more only where `mirrored`.

    Example:
        >>> looking(torch.tensor([[[[1], [2]], [[3], [4]]]]), torch.tensor([1]))[0, :, :, 0].tolist()
        [[2, 4], [1, 3]]
        >>> looking(torch.tensor([[[[1], [2]], [[3], [4]]]]), torch.tensor([4]), mirrored=True)[0, :, :, 0].tolist()
        [[2, 1], [4, 3]]
    """
    if mirrored:
        pixels = torch.where((chosen >= QUARTERS).view(-1, 1, 1, 1), pixels.flip(2), pixels)
        chosen = chosen % QUARTERS
    found = pixels
    for quarter in range(1, QUARTERS):
        here = (chosen == quarter).view(-1, 1, 1, 1)
        found = torch.where(here, torch.rot90(pixels, quarter, (1, 2)), found)
    return found
