"""Bytes of an image file to pixels, whatever the file; what cannot be shown is refused by name, never by a crash.

The first frame of an animation, upright as EXIF says, transparency on white, CMYK and palettes as RGB, 16 bits as 8,
one bit as black and white. Colour profiles are not applied. Files are opened with the decoders of `FORMATS` only.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from longview.data.images.listing import Box
from longview.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]
Mode = Literal["L", "RGB"]
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 1 << 26  # 8192 × 8192; more is taken for a decompression bomb
ORIENTATION = 0x0112
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
# What Pillow's decoders raise on damaged data, besides OSError.
DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError,
    ZeroDivisionError, MemoryError, NotImplementedError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip


class ImageError(ValueError):
    """An image that cannot be read; the message says why, and does not know the name of the file."""


def decode(data: bytes, *, box: Box | None = None, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Image:
    """Return the image as Pillow's `L` (where the file is grey) or `RGB`, upright, cut to `box`.

    `at_least`: sides that are enough; a JPEG that is larger is decoded at 1/2, 1/4 or 1/8 of its size.

    Raises:
        ImageError: empty, not an image, truncated, damaged, of too many pixels, of a box outside, or of 32-bit values.
        InputError: Pillow is not installed.
    """
    pillow = require_pillow()
    if not data:
        raise ImageError("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of tags that nobody needs, and of sizes that we refuse ourselves
        image = _upright(pillow, data, max_pixels, None if box is not None else at_least)
    return image if box is None else _cut(image, box)


def _upright(pillow: Any, data: bytes, max_pixels: int, at_least: int | None) -> Image:
    image = _open(pillow, data, max_pixels)
    try:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
        turn = _turn(image)
        image = _plain(pillow, image)
        if turn is not None:
            image = image.transpose(turn)
        return image
    except ImageError:
        raise
    except DAMAGE as error:
        raise ImageError(f"truncated or damaged ({_reason(error)})") from None


def is_grey(image: Image) -> bool:
    """Return whether a decoded image has one channel."""
    return image.mode == "L"


def require_pillow() -> Any:
    """Return Pillow's `PIL.Image`.

    Raises:
        InputError: it is not installed.
    """
    try:
        import PIL.Image
        import PIL.TiffImagePlugin
        import PIL.WebPImagePlugin  # these two decoders are not there before they are imported
    except ImportError:
        raise InputError("images need Pillow, which is not installed: pip install 'longview[images]'") from None
    return PIL.Image


def _open(pillow: Any, data: bytes, max_pixels: int) -> Image:
    try:
        image: Image = pillow.open(io.BytesIO(data), formats=FORMATS)
    except pillow.DecompressionBombError:
        raise ImageError(f"more than {max_pixels:,} pixels: a decompression bomb? (max_pixels)") from None
    except pillow.UnidentifiedImageError:
        raise ImageError(f"not an image that can be read ({_looks_like(data)})") from None
    except DAMAGE as error:
        raise ImageError(f"truncated or damaged ({_reason(error)})") from None
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{width} × {height} are more than {max_pixels:,} pixels: a decompression bomb? (max_pixels)")
    if not width or not height:
        raise ImageError(f"{width} × {height} pixels")
    return image


def _plain(pillow: Any, image: Image) -> Image:
    """Return the image in mode L or RGB, transparency on white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(pillow, image)
    if image.mode in ALPHA or "transparency" in image.info:
        alpha = image.convert("RGBA")
        on_white: Image = pillow.alpha_composite(pillow.new("RGBA", alpha.size, "white"), alpha)
        return on_white.convert("L" if image.mode in GREY else "RGB")
    if image.mode == "P" and image.palette is not None and image.palette.mode == "L":
        return image.convert("L")
    return image.convert("L" if image.mode in GREY else "RGB")


def _eight_bits(pillow: Any, image: Image) -> Image:
    """Return an image of 16 bits in 8. Pillow's own conversion would clip everything above 255."""
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not sixteen:
        raise ImageError("32 bits a value, of a range that is not known: convert it to 8 or 16 bits")
    values = np.asarray(image).astype(np.int64)
    scaled: Image = pillow.fromarray(np.clip(values // 257, 0, 255).astype(np.uint8))
    return scaled


def _turn(image: Image) -> Any:
    """Return the transposition that EXIF asks for, or None. A camera's unreadable EXIF asks for nothing."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(ORIENTATION)
    except DAMAGE:
        return None
    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation if isinstance(orientation, int) else 1)


def _cut(image: Image, box: Box) -> Image:
    left, top, right, bottom = box
    inside = (max(0, left), max(0, top), min(image.width, right), min(image.height, bottom))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise ImageError(f"the box {box} lies outside of the image ({image.width} × {image.height})")
    return image.crop(inside)


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def _looks_like(data: bytes) -> str:
    head = data[:64].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        return "it is a web page"
    if head.startswith(b"<svg") or head.startswith(b"<?xml"):
        return "it is XML or SVG"
    if head.startswith(b"%pdf"):
        return "it is a PDF"
    if head.startswith(b"%!ps"):
        return "it is PostScript"
    if not any(data[:64]):
        return "it begins with zeros"
    return f"readable: {', '.join(FORMATS)}"
