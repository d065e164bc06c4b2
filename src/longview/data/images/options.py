"""The options of `prepare_images`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from longview.config import Config
from longview.data.images.decode import MAX_PIXELS
from longview.data.images.layouts import Layout


class ImageOptions(Config):
    """What `prepare_images` is told."""

    layout: Layout = Field(default="auto", description="of the source; found by its files where not given")
    root: Path | None = Field(default=None, description="folder or archive that the paths of a table start from")
    path: str | None = Field(default=None, description="column of a table; guessed where not given")
    label: str | None = Field(default=None, description="column of a table; guessed where not given")
    test_classes: float = Field(
        default=0.2, ge=0, lt=1, description="share of classes held out for evaluation, where the source has no split"
    )
    bad_images: Literal["fail", "skip"] = Field(default="fail", description="images that cannot be read, or no label")
    check: bool = Field(default=True, description="open every image now, instead of when it is needed")
    pixels: int | None = Field(
        default=None, ge=1, le=1024, description="store all images as squares of so many pixels a side"
    )
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=2 * 89_478_485, description="of one image")
    workers: int = Field(default=2, ge=0, le=256, description="processes that decode")
    name: str | None = Field(default=None, description="of the set; that of the directory if not given")
