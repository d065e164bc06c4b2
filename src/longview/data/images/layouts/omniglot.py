"""Omniglot (Lake et al., Science 2015): `images_background/` and `images_evaluation/`, or `train/` and `test/`.

Below those: `<alphabet>/<character>/*.png`. A class is a character of an alphabet, its category the alphabet.
"""

from __future__ import annotations

import re
from dataclasses import replace

from longview.data.images.layouts import folder
from longview.data.images.layouts.roots import root_with_folders
from longview.data.images.listing import Listing, joined
from longview.data.images.store import Store

PARTS = (("images_background", "images_evaluation"), ("train", "test"))
CHARACTER = re.compile(r"character\d+")
EXPECTED = "Omniglot (images_background/ and images_evaluation/, or train/ and test/, of alphabets of characters)"


def find(store: Store) -> str | None:
    """Return the folder that holds the parts, or None."""
    for parts in PARTS:
        root = root_with_folders(store, *parts)
        if root is None:
            continue
        part = joined(root, parts[0])
        alphabets = store.folders(part)
        characters = store.folders(joined(part, alphabets[0])) if alphabets else []
        if characters and all(CHARACTER.fullmatch(name) for name in characters):
            return root
    return None


def read(store: Store, root: str) -> Listing:
    """List the images as a folder of folders with splits."""
    return replace(folder.read(store, root), layout="omniglot")
