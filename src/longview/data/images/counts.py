"""Counting what a set of images holds, for its card; and its fingerprint."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longview.data.images.layouts import PUBLISHED
from longview.data.images.listing import SPLITS
from longview.data.images.meta import ImageCard, Packed, SplitCount
from longview.data.images.samples import Samples

Codes = npt.NDArray[np.int32]


def count(
    source: Path, samples: Samples, labels: Codes, splits: Sequence[str], notes: tuple[str, ...], packed: Packed | None
) -> ImageCard:
    """Return the card of a set."""
    entries, names = samples.entries, np.asarray(splits)
    by_split: dict[str, SplitCount] = {
        split: _split(labels[names == split]) for split in SPLITS if (names == split).any()
    }
    evaluated = names != "train"
    gallery = np.isin(names, ("gallery", "test"))
    lost = ~np.isin(labels, labels[gallery]) & (names == "query")
    published, differs = _published(samples.listing.layout, by_split)
    notes = (*samples.listing.notes, *notes, *differs)
    if evaluated.any() and not gallery.any() and not (names == "validation").any():
        notes = (*notes, "there are queries and no gallery: nothing can be evaluated")
    elif lost.any() and lost.sum() == (names == "query").sum() and not (names == "test").any():
        notes = (*notes, "no class of a query is in the gallery: every query will be a miss")
    return ImageCard(
        source=str(source),
        layout=samples.listing.layout,
        notes=notes,
        listed=len(samples.listing.entries),
        problems=dict(Counter(samples.problems).most_common(20)),
        examples=samples.examples,
        checked=samples.looked is not None,
        images=len(entries),
        classes=len(np.unique(labels)),
        categories=len({entry.category for entry in entries} - {None}),
        splits=by_split,
        published=published,
        queries_without_match=int(lost.sum()),
        shared_classes=len(np.intersect1d(labels[names == "train"], labels[evaluated])),
        **_repeats(samples, labels, evaluated),
        sides=_sides(samples),
        stored="as files, where they are"
        if packed is None
        else f"decoded, {packed.height} × {packed.width} pixels, {'grey' if packed.channels == 1 else 'in colour'}",
        fingerprint=fingerprint(samples, splits),
    )


def fingerprint(samples: Samples, splits: Sequence[str]) -> str:
    """Hash names, labels, splits, boxes and, where the images were looked at, their content."""
    digest = hashlib.sha256()
    for number, (entry, split) in enumerate(zip(samples.entries, splits, strict=True)):
        digest.update("\x1f".join((entry.key, str(entry.label), split, str(entry.box))).encode())
        digest.update(b"\x1e" if samples.looked is None else samples.looked[number].digest)
    return digest.hexdigest()[:16]


def _split(labels: Codes) -> SplitCount:
    _, counts = np.unique(labels, return_counts=True)
    return SplitCount(images=len(labels), classes=len(counts), single_image_classes=int((counts == 1).sum()))


def _published(layout: str, found: dict[str, SplitCount]) -> tuple[str | None, tuple[str, ...]]:
    """Return what the card says of the published counts, and a note where this set has others."""
    expected = PUBLISHED.get(layout)
    if expected is None:
        return None, ()
    own = {split: (found[split].images, found[split].classes) if split in found else (0, 0) for split in expected}
    if own == expected:
        return "the same", ()
    differing = "; ".join(
        f"{split} {images:,} images of {classes:,} classes, here {own[split][0]:,} of {own[split][1]:,}"
        for split, (images, classes) in expected.items()
        if own[split] != (images, classes)
    )
    return "others", (f"the published data set has other counts ({differing}): results are not comparable",)


def _repeats(samples: Samples, labels: Codes, evaluated: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Count the samples whose file and box came before; of another class; and on both sides of the evaluation."""
    if samples.looked is None:
        return {}
    seen: dict[tuple[bytes, Any], list[int]] = {}
    for number, (entry, look) in enumerate(zip(samples.entries, samples.looked, strict=True)):
        seen.setdefault((look.digest, entry.box), []).append(number)
    repeated = [group for group in seen.values() if len(group) > 1]
    return {
        "repeated_images": sum(len(group) - 1 for group in repeated),
        "repeated_of_other_class": sum(int((labels[group] != labels[group[0]]).sum()) for group in repeated),
        "repeated_in_train_and_test": sum(len(set(evaluated[group].tolist())) == 2 for group in repeated),
    }


def _sides(samples: Samples) -> dict[str, int]:
    if samples.looked is None:
        return {}
    sides = np.asarray([max(look.width, look.height) for look in samples.looked])
    return {q: int(np.quantile(sides, float(q), method="lower")) for q in ("0", "0.5", "1")}
