"""Stanford Online Products (Song et al., CVPR 2016): `Ebay_train.txt`, `Ebay_test.txt` and twelve folders of images.

A row is `image_id class_id super_class_id path`. Every test image is query and gallery at once.
"""

from __future__ import annotations

from longview.data.images.layouts.roots import root_with
from longview.data.images.listing import Entry, Listing, Split, joined, text_lines
from longview.data.images.store import Store
from longview.errors import InputError

FILES: dict[str, Split] = {"Ebay_train.txt": "train", "Ebay_test.txt": "test"}
HEADER = ["image_id", "class_id", "super_class_id", "path"]
EXPECTED = "Stanford Online Products (Ebay_train.txt, Ebay_test.txt)"


def find(store: Store) -> str | None:
    """Return the folder that holds the lists, or None."""
    return root_with(store, *FILES)


def read(store: Store, root: str) -> Listing:
    """Read both lists; a class id means the same class in either.

    Raises:
        InputError: a row that is not four values, or a list without a header.
    """
    entries: list[Entry] = []
    missing = [name for name in FILES if not store.has(joined(root, name))]
    for name, split in FILES.items():
        if name in missing:
            continue
        key = joined(root, name)
        lines = text_lines(store.read(key), f"{store.path}/{key}")
        if lines[0].split() != HEADER:
            raise InputError(f"{store.path}/{key}: the first line must be {' '.join(HEADER)!r}, got {lines[0]!r}")
        for number, line in enumerate(lines[1:], 2):
            place = f"{store.path}/{key}, line {number}"
            if not line.strip():
                continue
            row = line.split(maxsplit=3)
            if len(row) != 4:
                raise InputError(f"{place}: four values expected ({' '.join(HEADER)}), got {line!r}")
            _, class_id, super_class, path = row
            # The category is named as its folder is: bicycle_final.
            folder = path.partition("/")[0].removesuffix("_final") or super_class
            entries.append(Entry(joined(root, path.strip()), class_id, split, folder, place=place))
    notes = tuple(f"{name} is missing: this is a part of the data set" for name in missing)
    return Listing("sop", entries, notes)
