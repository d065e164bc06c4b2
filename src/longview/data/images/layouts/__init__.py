"""Readers of the published layouts of image data sets: one file a layout, one function `read` each."""

from __future__ import annotations

from typing import Literal, Protocol

from longview.data.images.layouts import deepfashion2, folder, inshop, omniglot, sop
from longview.data.images.listing import Listing
from longview.data.images.store import Store
from longview.errors import InputError

Layout = Literal["auto", "sop", "inshop", "deepfashion2", "omniglot", "folder", "table"]


class Reader(Protocol):
    """A module of this folder."""

    EXPECTED: str

    def find(self, store: Store) -> str | None:
        """Return the folder of the store in which the layout begins, or None where it is another layout."""

    def read(self, store: Store, root: str) -> Listing:
        """Return what that folder holds."""


# Most particular first: all of them are also folders of folders.
READERS: dict[str, Reader] = {
    "sop": sop,
    "inshop": inshop,
    "deepfashion2": deepfashion2,
    "omniglot": omniglot,
    "folder": folder,
}
# (images, classes) of each split as published; DeepFashion2's released files differ from its paper, so it has none.
PUBLISHED: dict[str, dict[str, tuple[int, int]]] = {
    "sop": {"train": (59_551, 11_318), "test": (60_502, 11_316)},
    "inshop": {"train": (25_882, 3_997), "query": (14_218, 3_985), "gallery": (12_612, 3_985)},
    "omniglot": {"train": (19_280, 964), "test": (13_180, 659)},
}


def read_layout(store: Store, layout: Layout = "auto") -> Listing:
    """Return what `store` holds, by the rules of `layout` or of the first that fits.

    A store whose one folder holds everything (an archive of a folder) is read from that folder.

    Raises:
        InputError: no layout fits, or a file of it is damaged; the message names file and line.
    """
    for name, reader in READERS.items():
        if layout not in ("auto", name):
            continue
        found = reader.find(store)
        if found is not None:
            return reader.read(store, found)
    expected = "; ".join(reader.EXPECTED for name, reader in READERS.items() if layout in ("auto", name))
    raise InputError(f"{store.path}: no image data set in a layout that is known. Expected: {expected}")


def is_published(store: Store) -> bool:
    """Return whether the store is laid out like one of the published data sets (not merely a folder of folders)."""
    return any(reader.find(store) is not None for name, reader in READERS.items() if name != "folder")
