"""A small set of images that stays on the device: a batch is a list of numbers, and its images are made there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from longview.data.images.augment import Augment
from longview.data.images.batches import ImageBatch
from longview.data.images.framing import Framing
from longview.data.images.imageset import ImageView
from longview.data.images.making import Turned, make_images
from longview.errors import InputError

MOST_BYTES = 1 << 30  # of pixels that `fits` lets onto a device


class ResidentImages:
    """The pixels of a packed set's `view` on `device`, with what a batch needs to know of each.

    Every operation of `batch` is on the device and asks nothing of it, so that a step can be captured.

    Args:
        view: the images.
        framing: size and channels of what `batch` makes.
        augment: random changes.
        device: where the pixels are kept.
        turned: samples from `len(view)` on are the same images by 90, 180 and 270 degrees, as classes of their own;
            `mirrored`: and from `4 * len(view)` on their mirror images, likewise.

    Raises:
        InputError: images that are in files, or not square where they are to be turned.
    """

    def __init__(
        self,
        view: ImageView,
        framing: Framing,
        *,
        augment: Augment | None = None,
        device: torch.device,
        turned: Turned = False,
    ) -> None:
        reason = why_not_resident(view)
        pixels = view.images.pixels
        if reason is not None or pixels is None:
            raise InputError(f"{view.images.path}: cannot stay on a device: {reason}")
        self.framing, self.augment, self.turned, self.number = framing, augment, turned, len(view)
        self.pixels = torch.from_numpy(np.ascontiguousarray(pixels[view.rows])).to(device)
        self.labels = torch.from_numpy(view.labels).to(device)
        self.ids = torch.from_numpy(view.rows.astype(np.int64)).to(device)
        self.num_classes, self.num_images = view.images.meta.num_classes, len(view.images)

    def batch(self, samples: Tensor, draws: Tensor | None = None) -> ImageBatch:
        """Return the images numbered `samples` (B,) int64 in the view, changed as `draws` (B, DRAWS) say."""
        look, places = None, samples
        if self.turned:
            look, places = samples // self.number, samples % self.number
        images = make_images(self.pixels[places], self.framing, self.augment, draws, look, self.turned)
        labels, ids = self.labels[places], self.ids[places]
        if look is not None:
            labels, ids = labels + look * self.num_classes, ids + look * self.num_images
        return ImageBatch(images, labels, ids)


def why_not_resident(view: ImageView) -> str | None:
    """Return why the images of `view` cannot stay on a device, in words, or None where they can."""
    pixels = view.images.pixels
    if pixels is None:
        return "its images are in files; prepare them with pixels=SIZE, if they are small"
    size = len(view) * int(np.prod(pixels.shape[1:]))
    if size > MOST_BYTES:
        return f"its pixels take {size / 2**30:.1f} GiB, and at most {MOST_BYTES / 2**30:.0f} GiB are kept there"
    return None
