"""Whatever file comes: its pixels as a person would see them, or a reason in words."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from longview.data.images.decode import ImageError, decode
from longview.data.images.framing import square
from longview.errors import InputError
from tests.data.images.pictures import encoded, picture


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data)).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_formats(kind: str) -> None:
    image = decode(encoded(picture(1), kind))
    assert (image.mode, image.size) == ("RGB", (12, 10))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(picture(1))).mean() < 12


def test_cmyk_is_seen_in_its_colours() -> None:
    red = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    assert (pixels(encoded(red, "TIFF"))[0, 0] == (255, 0, 0)).all()
    assert (np.abs(pixels(encoded(red, "JPEG", quality=100))[0, 0] - (255, 0, 0)) < 8).all()


def test_sixteen_bits_become_eight_and_are_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    for kind in ("PNG", "TIFF"):
        assert pixels(encoded(deep, kind)).tolist() == [[0, 1, 128, 255]]


def test_palette_and_its_transparency() -> None:
    colours = Image.new("P", (2, 1))
    colours.putpalette([10, 20, 30, 200, 100, 50])
    colours.putpixel((1, 0), 1)
    assert pixels(encoded(colours, "PNG")).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert pixels(encoded(colours, "PNG", transparency=0)).tolist() == [[[255, 255, 255], [200, 100, 50]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode: str) -> None:
    clear = Image.new(mode, (2, 2), (0,) * len(mode))
    image = decode(encoded(clear, "PNG"))
    assert image.mode == ("RGB" if mode == "RGBA" else "L")
    assert (np.asarray(image) == 255).all()


def test_one_bit_is_black_and_white() -> None:
    image = Image.new("1", (2, 1), 0)
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, "PNG")).tolist() == [[0, 255]]


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(pixels(data)[0, 0] - (255, 0, 0)).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright_as_exif_says(orientation: int) -> None:
    upright = Image.new("L", (6, 4), 0)
    upright.putpixel((0, 0), 255)  # the corner at the top left
    stored = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what a camera held so has done to it
    image = upright if orientation == 1 else upright.transpose(Image.Transpose(stored[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (pixels(encoded(image, "PNG", exif=exif)) == np.asarray(upright)).all()


def test_damaged_exif_turns_nothing() -> None:
    data = encoded(picture(1), "JPEG", exif=b"Exif\0\0MM\0\x2agarbage")
    assert decode(data).size == (12, 10)


def huge_png(width: int, height: int) -> bytes:
    """A file of a few bytes that says it is `width` × `height`."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\0" * 100, "begins with zeros"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (encoded(picture(1, (64, 64)), "JPEG")[:-200], "truncated"),
        (encoded(picture(1, (64, 64)), "PNG")[:-60], "truncated or damaged"),
        (huge_png(20_000, 20_000), "bomb"),
        (huge_png(9_000, 9_000), "bomb"),
        (encoded(Image.new("F", (2, 2)), "TIFF"), "32 bits"),
    ],
    ids=["empty", "zeros", "web-page", "postscript", "cut-jpeg", "cut-png", "bomb", "small-bomb", "float"],
)
def test_what_cannot_be_read_is_said(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decode(data)


def test_boxes_are_cut_to_the_image() -> None:
    data = encoded(picture(2), "PNG")
    assert decode(data, box=(2, 1, 99, 6)).size == (10, 5)
    with pytest.raises(ImageError, match="outside"):
        decode(data, box=(50, 1, 60, 6))


def test_a_large_jpeg_is_decoded_as_small_as_it_is_needed() -> None:
    data = encoded(picture(3, (400, 320)), "JPEG")
    assert decode(data, at_least=40).size == (50, 40)
    small = square(decode(data, at_least=40), 40, "crop", "RGB").astype(int)
    assert np.abs(small - square(decode(data), 40, "crop", "RGB")).mean() < 3


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]), st.data())
def test_no_damage_raises_anything_else(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(picture(4), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with contextlib.suppress(ImageError):
        assert decode(bytes(content), max_pixels=1 << 16).mode in ("L", "RGB")


def test_fits() -> None:
    wide = Image.new("L", (8, 4), 0)
    wide.paste(200, (2, 0, 6, 4))  # the middle
    assert (square(wide, 4, "crop", "L") == 200).all()
    padded = square(wide, 8, "pad", "RGB")
    assert (padded[:2] == 255).all()
    assert (padded[3:5, 0] == 0).all()
    assert square(wide, 4, "stretch", "L").shape == (4, 4, 1)
    assert square(Image.open(io.BytesIO(encoded(Image.new("L", (1, 900))))), 4, "pad", "L").shape == (4, 4, 1)


def test_without_pillow_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(InputError, match=r"pip install 'longview\[images\]'"):
        decode(b"anything")
