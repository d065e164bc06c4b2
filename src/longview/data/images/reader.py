"""The samples of an image data set by number: bytes, images, pixels; and what is wrong with the ones that are not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from longview.data.images.decode import ImageError, Mode, Pixels, decode, is_grey
from longview.data.images.framing import Fit, square
from longview.data.images.listing import Box
from longview.data.images.store import KeyRefusedError, Store


@dataclass(frozen=True)
class Looked:
    """What one sample is, or `problem`: why it cannot be used."""

    width: int = 0
    height: int = 0
    grey: bool = False
    digest: bytes = b""
    problem: str | None = None


@dataclass(frozen=True)
class Loaded:
    """`pixels` (k, H, W, channels) uint8 of the samples at the `kept` places; `problems` are (place, reason)."""

    pixels: Pixels
    kept: tuple[int, ...]
    problems: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Request:
    """The samples `rows` as squares of `size`; files may be decoded at a coarser scale that still has `size`."""

    rows: tuple[int, ...]
    size: int
    fit: Fit
    mode: Mode


@dataclass(frozen=True)
class ImageReader:
    """Reads the samples of `store`; `keys` is an Arrow array of strings, `boxes` one of four numbers or nulls."""

    store: Store
    keys: pa.Array
    boxes: pa.Array | None
    max_pixels: int

    def look(self, rows: Sequence[int]) -> list[Looked]:
        """Decode each sample in full, and say what it is."""
        return [self._look(row) for row in rows]

    def load(self, request: Request) -> Loaded:
        """Return the pixels of the samples that can be read, and why the others cannot."""
        pixels, kept, problems = [], [], []
        for place, row in enumerate(request.rows):
            try:
                image = decode(self.read(row), box=self._box(row), max_pixels=self.max_pixels, at_least=request.size)
                pixels.append(square(image, request.size, request.fit, request.mode))
                kept.append(place)
            except (ImageError, KeyRefusedError, OSError) as error:
                problems.append((place, explain(error)))
        shape = (0, request.size, request.size, 1 if request.mode == "L" else 3)
        return Loaded(np.stack(pixels) if pixels else np.empty(shape, np.uint8), tuple(kept), tuple(problems))

    def read(self, row: int) -> bytes:
        """Return the file of a sample.

        Raises:
            KeyRefusedError, OSError: see `Store.read`.
        """
        return self.store.read(self.keys[row].as_py())

    def _look(self, row: int) -> Looked:
        try:
            data = self.read(row)
            image = decode(data, box=self._box(row), max_pixels=self.max_pixels)
        except (ImageError, KeyRefusedError, OSError) as error:
            return Looked(problem=explain(error))
        return Looked(image.width, image.height, is_grey(image), hashlib.blake2b(data, digest_size=16).digest())

    def _box(self, row: int) -> Box | None:
        corners = None if self.boxes is None else self.boxes[row].as_py()
        return None if corners is None else (corners[0], corners[1], corners[2], corners[3])


def explain(error: Exception) -> str:
    """Return the reason of a problem in a few words."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)
