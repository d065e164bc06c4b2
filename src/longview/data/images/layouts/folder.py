"""A folder of folders: the folders that lead to an image are its label.

`shoes/red/1.jpg` is of class `shoes/red`. Where every top folder is named like a split (`train`, `val`, `test`,
`query`, `gallery`, …), that is the split, and the label begins below it.
"""

from __future__ import annotations

from longview.data.images.listing import SPLIT_NAMES, Entry, Listing, some
from longview.data.images.store import Store
from longview.errors import InputError

EXPECTED = "a folder of folders of images, one a class; train/ and test/ above them where they are split"


def find(store: Store) -> str | None:
    """Return the folder in which classes begin, or None where no image lies in a folder."""
    first = next(iter(store.images()), None)
    if first is None or ("/" not in first and not store.folders()):
        return None
    root, folders = "", store.folders()
    # An archive of a folder: that folder is no class, as long as there are folders in it.
    while len(folders) == 1 and folders[0].lower() not in SPLIT_NAMES:
        inside = f"{root}/{folders[0]}" if root else folders[0]
        if not store.folders(inside):
            break
        root, folders = inside, store.folders(inside)
    return root


def read(store: Store, root: str) -> Listing:
    """List the images, in the order of their names.

    Raises:
        InputError: no image at all, or an archive with names that leave it.
    """
    prefix = f"{root}/" if root else ""
    keys = list(store.images(root))
    folders = {key[len(prefix) :].partition("/")[0] for key in keys if "/" in key[len(prefix) :]}
    splits = bool(folders) and all(name.lower() in SPLIT_NAMES for name in folders)
    entries, loose = [], []
    for key in keys:
        *parents, _ = key[len(prefix) :].split("/")
        split = SPLIT_NAMES[parents.pop(0).lower()] if splits and parents else None
        if not parents:
            loose.append(key)
            continue
        entries.append(Entry(key, "/".join(parents), split, parents[0] if len(parents) > 1 else None))
    if not entries:
        raise InputError(f"{store.path}: no image in a folder of its class. Expected: {EXPECTED}")
    notes = (f"images in no folder of a class are left out: {some(loose)}",) if loose else ()
    return Listing("folder", entries, notes)
