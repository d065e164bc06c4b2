"""What a reader finds in a published layout: keys, labels and splits, before any image is opened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from longview.errors import InputError

Split = Literal["train", "validation", "test", "query", "gallery"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "query", "gallery")
SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "images_background": "train", "background": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "images_evaluation": "test", "evaluation": "test",
    "query": "query", "probe": "query",
    "gallery": "gallery", "index": "gallery",
}  # fmt: skip
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Entry:
    """One sample: an image, or one box (left, top, right, bottom, pixels) of an image.

    `label` is None where the source gives none. `category` is a coarser class (a super-class, an alphabet).
    """

    key: str
    label: str | None
    split: Split | None
    category: str | None = None
    box: Box | None = None
    place: str = ""  # where the source says so: a file and a line


@dataclass(frozen=True)
class Listing:
    """All samples of a source, in its order. Keys are relative to the root of its store."""

    layout: str
    entries: Sequence[Entry]
    notes: tuple[str, ...] = ()


def split_named(text: str, place: str) -> Split:
    """Return the split that `text` names.

    Raises:
        InputError: an unknown name; `place` says where it stands.
    """
    found = SPLIT_NAMES.get(text.strip().lower())
    if found is None:
        raise InputError(f"{place}: the split {text!r} is unknown; known: {', '.join(SPLITS)}")
    return found


def text_lines(content: bytes, name: str) -> list[str]:
    """Return the lines of a text file.

    Raises:
        InputError: not UTF-8, or nothing in it.
    """
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    if not any(line.strip() for line in lines):
        raise InputError(f"{name}: the file is empty")
    return lines


def joined(*parts: str) -> str:
    """Return a key of the parts that are not empty."""
    return "/".join(part.strip("/") for part in parts if part)


def some(values: Iterable[str], limit: int = 5) -> str:
    """Return the first few of `values` as text, and that there are more."""
    values = list(values)
    return ", ".join(values[:limit]) + (f", … ({len(values)} in all)" if len(values) > limit else "")
