"""DeepFashion2 (Ge et al., CVPR 2019), consumer to shop: `train/` and `validation/`, each with `image/` and `annos/`.

An annotation `annos/000001.json` has `source` (`user` or `shop`), `pair_id` and garments `item1`, `item2`, …; two
garments are the same one where pair and `style` agree and the style is above 0 (garments of style 0 have no match and
are in no official list). A sample is a garment: the image cut to its `bounding_box`. Of the validation part, consumer
images are queries and shop images the gallery. The test part is published without styles.
"""

from __future__ import annotations

import json
from typing import Any

from longview.data.images.layouts.roots import root_with_folders
from longview.data.images.listing import Box, Entry, Listing, Split, joined
from longview.data.images.store import Store
from longview.errors import InputError

EXPECTED = "DeepFashion2 (train/ and validation/, each with image/ and annos/)"
SOURCES = ("user", "shop")


def find(store: Store) -> str | None:
    """Return the folder that holds the parts, or None."""
    for part in ("train", "validation"):
        root = root_with_folders(store, part)
        if root is not None and {"image", "annos"} <= set(store.folders(joined(root, part))):
            return root
    return None


def read(store: Store, root: str) -> Listing:
    """Read the annotations beside the images.

    Raises:
        InputError: an annotation that is missing, not JSON or without pair, source, style or box.
    """
    entries: list[Entry] = []
    unmatched = 0
    for part in ("train", "validation"):
        for key in store.images(joined(root, part, "image")):
            name = joined(root, part, "annos", key.rpartition("/")[2].rpartition(".")[0] + ".json")
            try:
                found, skipped = _garments(json.loads(store.read(name)), key, part, f"{store.path}/{name}")
            except (OSError, ValueError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{store.path}/{name}: no readable annotation of {key} ({error})") from None
            entries += found
            unmatched += skipped
    notes = (f"{unmatched:,} garments of style 0 (no match) are left out",) if unmatched else ()
    return Listing("deepfashion2", entries, notes)


def _garments(annotation: Any, key: str, part: str, place: str) -> tuple[list[Entry], int]:
    """Return the garments of an image that have a style, and the number of those that have none."""
    try:
        source, pair = annotation["source"], int(annotation["pair_id"])
        garments = [annotation[name] for name in sorted(annotation) if name.startswith("item")]
        styled = [garment for garment in garments if int(garment["style"]) > 0]
        entries = [
            Entry(key, f"{part}/{pair}/{int(garment['style'])}", _split(part, source), garment.get("category_name"),
                  _box(garment["bounding_box"]), place)
            for garment in styled
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{place}: expected source (user or shop), pair_id, and items with style and bounding_box "
            f"[left, top, right, bottom] ({type(error).__name__}: {error})"
        ) from None
    return entries, len(garments) - len(styled)


def _split(part: str, source: Any) -> Split:
    if source not in SOURCES:
        raise ValueError(f"source {source!r}")
    if part == "train":
        return "train"
    return "query" if source == "user" else "gallery"


def _box(corners: Any) -> Box:
    left, top, right, bottom = (int(value) for value in corners)
    if right <= left or bottom <= top:
        raise ValueError(f"the box {corners} has no area")
    return left, top, right, bottom
