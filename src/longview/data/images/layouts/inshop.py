"""In-Shop Clothes Retrieval of DeepFashion (Liu et al., CVPR 2016): `Eval/list_eval_partition.txt` and `Img/img/…`.

The list begins with the number of images and a header; a row is `image_name item_id evaluation_status`, the status
train, query or gallery. Query and gallery are different images of the same items.
"""

from __future__ import annotations

from longview.data.images.layouts.roots import root_with
from longview.data.images.listing import Entry, Listing, Split, joined, text_lines
from longview.data.images.store import Store
from longview.errors import InputError

LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
HEADER = ["image_name", "item_id", "evaluation_status"]
STATUS: dict[str, Split] = {"train": "train", "query": "query", "gallery": "gallery"}
EXPECTED = "In-Shop (Eval/list_eval_partition.txt, Img/img/…)"


def find(store: Store) -> str | None:
    """Return the folder that holds the list, or None."""
    return root_with(store, *LISTS)


def read(store: Store, root: str) -> Listing:
    """Read the list; image names are looked up in `Img/` or beside it, whichever holds them.

    Raises:
        InputError: a damaged header or row, an unknown status, or fewer rows than the list says it has.
    """
    key = next(joined(root, name) for name in LISTS if store.has(joined(root, name)))
    name = f"{store.path}/{key}"
    lines = [line for line in text_lines(store.read(key), name) if line.strip()]
    if len(lines) < 3 or not lines[0].strip().isdigit() or lines[1].split() != HEADER:
        raise InputError(f"{name}: expected the number of images, then {' '.join(HEADER)!r}, then a row an image")
    if int(lines[0]) != len(lines) - 2:
        raise InputError(f"{name}: {int(lines[0])} images announced, {len(lines) - 2} rows: truncated? Copy it again")
    rows = []
    for number, line in enumerate(lines[2:], 3):
        row = line.split()
        if len(row) != 3 or row[2] not in STATUS:
            raise InputError(f"{name}, line {number}: expected image_name item_id train|query|gallery, got {line!r}")
        rows.append((row[0], row[1], STATUS[row[2]], f"{name}, line {number}"))
    below = _images_below(store, root, rows[0][0])
    entries = [Entry(joined(below, path), item, split, _category(path), place=at) for path, item, split, at in rows]
    return Listing("inshop", entries)


def _images_below(store: Store, root: str, first: str) -> str:
    """Return the folder that image names start from."""
    for folder in ("Img", "", "Img_highres"):
        if store.has(joined(root, folder, first)) or first.partition("/")[0] in store.folders(joined(root, folder)):
            return joined(root, folder)
    return joined(root, "Img")


def _category(path: str) -> str | None:
    """Return `WOMEN/Dresses` of `img/WOMEN/Dresses/id_00000002/02_1_front.jpg`."""
    parts = path.split("/")
    return "/".join(parts[1:-2]) if len(parts) > 3 else None
