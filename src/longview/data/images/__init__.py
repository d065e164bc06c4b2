"""Data sets of labelled images, and batches of them."""

from longview.data.images.augment import Augment
from longview.data.images.batches import ImageBatch, ImageBatches, InOrder
from longview.data.images.framing import Framing
from longview.data.images.imageset import ImageSet, ImageView
from longview.data.images.prepare import prepare_images

__all__ = ["Augment", "Framing", "ImageBatch", "ImageBatches", "ImageSet", "ImageView", "InOrder", "prepare_images"]
