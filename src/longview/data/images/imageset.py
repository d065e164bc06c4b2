"""A prepared set of labelled images on disk, and views of its splits.

Layout (Arrow IPC files and one NumPy array, any tool opens them):

* `meta.json`: `ImageMeta`; `card.md`: its card.
* `images.arrow`: `key` string (path below the source), `label` int32 (a row of `classes.arrow`), `split` (dictionary
  of strings: train, validation, test, query, gallery), and, where the source has them, `category` (dictionary of
  strings) and `box` (left, top, right, bottom).
* `classes.arrow`: `label` string. Classes of the training split come first, so that its labels are 0 to n − 1.
* `pixels.npy`: the decoded images, where they are small (see `Packed`). The files themselves stay where they are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longview.config import parse
from longview.data.images.decode import Pixels
from longview.data.images.listing import Split
from longview.data.images.meta import SCHEMA_VERSION, ImageMeta
from longview.data.images.reader import ImageReader
from longview.data.images.store import open_store
from longview.errors import InputError

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """A prepared set of images. Samples are numbered in the order of the source.

    Example:
        >>> images = ImageSet.open("data/omniglot")  # doctest: +SKIP
        >>> len(images.train), images.train.num_classes  # doctest: +SKIP
        (19280, 964)
    """

    path: Path
    meta: ImageMeta
    table: pa.Table
    classes: pa.Array
    root: Path

    @classmethod
    def open(cls, path: str | Path, *, root: str | Path | None = None) -> ImageSet:
        """Open the set in directory `path`; `root` is where the images lie now, if they have moved.

        Raises:
            InputError: no set of images there, one of another schema version, or a damaged one.
        """
        path = Path(path)
        meta = _read_meta(path)
        table, classes = _read_arrow(path / "images.arrow"), _read_arrow(path / "classes.arrow")
        labels = table["label"].to_numpy() if "label" in table.column_names else np.empty(0)
        sizes = (table.num_rows, classes.num_rows)
        if sizes != (meta.num_images, meta.num_classes) or labels.min() < 0 or labels.max() >= classes.num_rows:
            raise InputError(
                f"{path}: the files hold {sizes} images and classes but meta.json says "
                f"{(meta.num_images, meta.num_classes)}; prepare the images again"
            )
        place = Path(root) if root is not None else path / meta.source  # an absolute source stays as it is
        return cls(path, meta, table, classes["label"].combine_chunks(), place)

    def __len__(self) -> int:
        return self.meta.num_images

    @property
    def fingerprint(self) -> str:
        return self.meta.fingerprint

    @cached_property
    def labels(self) -> Rows:
        """(n,) int64 class number of every image; `label_names` are the classes."""
        return np.asarray(self.table["label"].to_numpy(), np.int64)

    @cached_property
    def label_names(self) -> list[str]:
        names: list[str] = self.classes.to_pylist()
        return names

    @cached_property
    def categories(self) -> Rows | None:
        """(n,) int64 category number of every image, −1 where it has none; None where no image has one."""
        if "category" not in self.table.column_names:
            return None
        codes = self.table["category"].combine_chunks()
        codes = codes.chunk(0) if isinstance(codes, pa.ChunkedArray) else codes
        return np.asarray(codes.indices.fill_null(-1).to_numpy(), np.int64)

    @cached_property
    def pixels(self) -> Pixels | None:
        """(n, height, width, channels) uint8, memory-mapped, where the set is packed; else None.

        Raises:
            InputError: the file is missing or damaged.
        """
        packed = self.meta.packed
        if packed is None:
            return None
        file, shape = self.path / "pixels.npy", (len(self), packed.height, packed.width, packed.channels)
        try:
            pixels = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: missing or damaged ({error}); prepare the images again") from None
        if pixels.shape != shape or pixels.dtype != np.uint8:
            raise InputError(f"{file}: {shape} bytes expected, got {pixels.shape} {pixels.dtype}; prepare again")
        found: Pixels = pixels
        return found

    def reader(self) -> ImageReader:
        """Return what reads the image files themselves.

        Raises:
            InputError: the images are not where they were.
        """
        if not self.root.exists():
            raise InputError(
                f"{self.root}: the images of {self.path} are no longer there; open it with root=…, or prepare again"
            )
        boxes = self.table["box"].combine_chunks() if "box" in self.table.column_names else None
        return ImageReader(open_store(self.root), self.table["key"].combine_chunks(), boxes, self.meta.max_pixels)

    def view(self, *splits: Split) -> ImageView:
        """Return the images of the named splits."""
        names = np.asarray(self.table["split"].to_pylist())
        return ImageView(self, np.flatnonzero(np.isin(names, splits)))

    @property
    def train(self) -> ImageView:
        return self.view("train")

    @property
    def validation(self) -> ImageView:
        """Images to choose settings by; each is query and gallery at once. Often empty."""
        return self.view("validation")

    @property
    def query(self) -> ImageView:
        """Queries of the evaluation: the split `query`, and all of `test`."""
        return self.view("test", "query")

    @property
    def gallery(self) -> ImageView:
        """The gallery: the split `gallery`, and all of `test`."""
        return self.view("test", "gallery")

    @property
    def leave_one_out(self) -> bool:
        """Whether every query is in the gallery too, and must not find itself."""
        return bool(np.array_equal(self.query.rows, self.gallery.rows))


@dataclass(frozen=True)
class ImageView:
    """Some images of a set: sample i of the view is image `rows[i]`, which is its id."""

    images: ImageSet
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> Rows:
        """(n,) int64 class numbers, those of the whole set."""
        return self.images.labels[self.rows]

    @property
    def num_classes(self) -> int:
        return len(np.unique(self.labels))

    @cached_property
    def categories(self) -> Rows | None:
        """(n,) int64 category numbers, −1 where there is none; None where no image has one."""
        return None if self.images.categories is None else self.images.categories[self.rows]

    @property
    def keys(self) -> list[str]:
        """The paths of the images below the source."""
        found: list[str] = self.images.table["key"].take(pa.array(self.rows)).to_pylist()
        return found


def is_image_set(path: str | Path) -> bool:
    """Return whether the directory `path` is a prepared set of images (as opposed to logs, or to nothing)."""
    try:
        values = json.loads((Path(path) / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("kind") == "images"


def _read_meta(path: Path) -> ImageMeta:
    file = path / "meta.json"
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: not a prepared set of images (no meta.json); run `longview prepare` first") from None
    except ValueError as error:
        raise InputError(f"{file}: damaged ({error}); prepare the images again") from None
    if not isinstance(values, dict) or values.get("kind") != "images":
        raise InputError(f"{path}: a prepared data set, but not one of images")
    if values.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{file}: not schema version {SCHEMA_VERSION}; prepare the images again with this version")
    return parse(ImageMeta, values, str(file))


def _read_arrow(path: Path) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: missing or damaged ({error}); prepare the images again") from None
