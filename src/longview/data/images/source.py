"""Telling images from logs by what lies there."""

from __future__ import annotations

from pathlib import Path

from longview.data.images.layouts import is_published
from longview.data.images.store import SUFFIXES, open_store

BESIDE = (".md", ".html", ".pdf", ".zip")  # what may lie beside the folders of images


def is_image_source(path: str | Path) -> bool:
    """Return whether `path` is a zip archive of images, or a folder with images and with no files of data at its top.

    A folder laid out like a published data set of images is one, lists and all.
    """
    path = Path(path).expanduser()
    if path.is_file():
        try:
            with path.open("rb") as file:
                archive = file.read(4) == b"PK\x03\x04"
        except OSError:
            return False  # whoever goes on to read it says what is wrong
        # A spreadsheet is an archive too, and may hold pictures.
        return archive and not (store := open_store(path)).has("[Content_Types].xml") and any(store.images())
    if not path.is_dir():
        return False
    store = open_store(path)
    if is_published(store):
        return True
    files = (inside.name.lower() for inside in path.iterdir() if inside.is_file())
    if any(not name.endswith((*SUFFIXES, *BESIDE)) for name in files if not name.startswith(".")):
        return False
    return next(iter(store.images()), None) is not None
