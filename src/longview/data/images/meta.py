"""What `meta.json` and the card of a prepared set of images say."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from longview.config import Config

SCHEMA_VERSION = 1


class Packed(Config):
    """`pixels.npy`: (num_images, height, width, channels) uint8, for images so small that decoding would cost more."""

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    channels: Literal[1, 3]


class ImageMeta(Config):
    """The counts, source and fingerprint of a prepared set of images.

    `source` is the folder or archive of the images; a relative one starts from the folder of `meta.json`.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["images"] = "images"
    name: str
    layout: str
    source: str
    num_images: int = Field(ge=1)
    num_classes: int = Field(ge=1)
    max_pixels: int = Field(ge=1)
    packed: Packed | None = None
    fingerprint: str
    card: dict[str, Any] = {}


class SplitCount(Config):
    """Counts of one split; a class of one image makes no positive pair there."""

    images: int
    classes: int
    single_image_classes: int


class ImageCard(Config):
    """Counts of a prepared set of images; `longview prepare` writes it to `card.md` and `meta.json`."""

    source: str
    layout: str
    notes: tuple[str, ...] = ()
    listed: int
    problems: dict[str, int] = {}
    examples: tuple[str, ...] = ()
    checked: bool
    images: int
    classes: int
    categories: int
    splits: dict[str, SplitCount]
    published: str | None = None
    queries_without_match: int = 0
    shared_classes: int = 0
    repeated_images: int | None = None
    repeated_of_other_class: int | None = None
    repeated_in_train_and_test: int | None = None
    sides: dict[str, int] = {}
    stored: str
    fingerprint: str

    def sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Return (heading, [(what, how much)]) for people."""
        return [("Read", self._read()), ("Images", self._images()), ("Splits", self._splits())]

    def markdown(self, name: str) -> str:
        """Return the card as Markdown."""
        lines = [f"# Data card: {name}", "", *(f"> {note}" for note in self.notes), *([""] if self.notes else [])]
        for heading, rows in self.sections():
            lines += [f"## {heading}", "", "| | |", "|---|---|"]
            lines += [f"| {what.replace('|', '/')} | {much.replace('|', '/')} |" for what, much in rows] + [""]
        return "\n".join(lines)

    def _read(self) -> list[tuple[str, str]]:
        rows = [("source", self.source), ("layout", self.layout), ("images listed", f"{self.listed:,}")]
        if self.problems:
            rows.append(("left out", f"{sum(self.problems.values()):,}: {'; '.join(self.examples)}"))
            rows += [(f"  {reason}", f"{count:,}") for reason, count in self.problems.items()]
        elif not self.checked:
            rows.append(("checked", "no: files were listed, not opened"))
        return rows

    def _images(self) -> list[tuple[str, str]]:
        rows = [("images", f"{self.images:,}"), ("classes", f"{self.classes:,}")]
        if self.categories:
            rows.append(("categories", f"{self.categories:,}"))
        if self.sides:
            names = {"0": "min", "0.5": "median", "1": "max"}
            shown = ", ".join(f"{name} {self.sides[q]:,}" for q, name in names.items())
            rows.append(("longer side, pixels", shown))
        if self.repeated_images is not None:
            more = f", {self.repeated_of_other_class:,} of another class" if self.repeated_of_other_class else ""
            both = self.repeated_in_train_and_test
            more += f", {both:,} in training and in evaluation" if both else ""
            rows.append(("repeats of a file", f"{self.repeated_images:,}{more}"))
        return [*rows, ("stored", self.stored)]

    def _splits(self) -> list[tuple[str, str]]:
        rows = []
        for split, count in self.splits.items():
            single = f" ({count.single_image_classes:,} of one image)" if count.single_image_classes else ""
            rows.append((split, f"{count.images:,} images of {count.classes:,} classes{single}"))
        if self.published is not None:
            rows.append(("published counts", self.published))
        rows.append(("classes in training and in evaluation", f"{self.shared_classes:,}"))
        if self.queries_without_match:
            rows.append(
                ("queries without a match", f"{self.queries_without_match:,} (their class is not in the gallery)")
            )
        return [*rows, ("fingerprint", self.fingerprint)]
