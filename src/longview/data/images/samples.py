"""The samples of a set once bad ones are out: their splits, and the numbers of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longview.data.images.listing import Entry, Listing
from longview.data.images.reader import Looked


@dataclass(frozen=True)
class Samples:
    """`entries` that can be used, all with a label; `looked` at, unless nobody did; `problems` of the others."""

    listing: Listing
    entries: tuple[Entry, ...]
    looked: tuple[Looked, ...] | None
    problems: tuple[str, ...]
    examples: tuple[str, ...]


def hold_out(entries: Sequence[Entry], share: float) -> tuple[list[str], tuple[str, ...]]:
    """Return the split of every entry, and what to say of it.

    Where the source has no split, `share` of the classes (at least one, never all) are for evaluation; which ones
    depends on their names alone.
    """
    if any(entry.split is not None for entry in entries):
        return [entry.split or "train" for entry in entries], ()
    names = sorted({str(entry.label) for entry in entries})
    number = min(max(round(share * len(names)), 1), len(names) - 1) if share else 0
    held = {names[at] for at in np.random.default_rng(0).permutation(len(names))[:number]}
    if not number:
        note = "the source has no split: all images are for training, none for evaluation"
    else:
        note = f"the source has no split: {number:,} of {len(names):,} classes are held out for testing (test_classes)"
    return ["test" if entry.label in held else "train" for entry in entries], (note,)


def number_classes(entries: Sequence[Entry], splits: Sequence[str]) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Return the class number of every entry, and the names; classes of the training split come first.

    Names that are all whole numbers are ordered by value, others as text.
    """
    labels = [str(entry.label) for entry in entries]
    trained = {label for label, split in zip(labels, splits, strict=True) if split == "train"}
    numeric = all(label.isdecimal() for label in set(labels))
    names = sorted(set(labels), key=lambda name: (name not in trained, int(name) if numeric else 0, name))
    codes = {name: code for code, name in enumerate(names)}
    return np.fromiter((codes[label] for label in labels), np.int32, len(labels)), names
