"""The folder of a store in which a layout begins: its root, or one folder further in."""

from __future__ import annotations

from longview.data.images.listing import joined
from longview.data.images.store import Store


def root_with(store: Store, *files: str) -> str | None:
    """Return the folder (`""` is the root) that holds one of `files`, or None."""
    for root in ("", *store.folders()):
        if any(store.has(joined(root, file)) for file in files):
            return root
    return None


def root_with_folders(store: Store, *folders: str) -> str | None:
    """Return the folder (`""` is the root) that holds all of `folders`, or None."""
    for root in ("", *store.folders()):
        if set(folders) <= set(store.folders(root)):
            return root
    return None
