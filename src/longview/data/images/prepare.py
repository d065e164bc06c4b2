"""From a folder, an archive or a table of images to a prepared set.

layout → listing → look at every image → classes and splits → images, classes, pixels, card
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longview.config import parse
from longview.data.dataset import write_arrow
from longview.data.images.counts import count
from longview.data.images.decode import Mode, require_pillow
from longview.data.images.imageset import ImageSet
from longview.data.images.layouts import read_layout
from longview.data.images.listing import Listing, some
from longview.data.images.meta import ImageMeta, Packed
from longview.data.images.options import ImageOptions
from longview.data.images.reader import ImageReader, Loaded, Looked, Request
from longview.data.images.samples import Samples, hold_out, number_classes
from longview.data.images.source import is_image_source
from longview.data.images.store import KeyRefusedError, Store, open_store, safe_key
from longview.data.images.table import read_table
from longview.data.images.workers import Workers
from longview.errors import InputError
from longview.files import atomic_directory, write_json

Report = Callable[[str, int, int], None]
PIECE = 64  # images a task of a worker
SMALL_SIDE = 64  # images of one size up to this are stored decoded
SMALL_BYTES = 1 << 31


def prepare_images(
    source: str | Path, *, out: str | Path, overwrite: bool = False, report: Report | None = None, **options: Any
) -> ImageSet:
    """Read the images of `source` (a folder, a zip archive or a table of paths), write a set to `out` and open it.

    Options are the fields of `ImageOptions`. The image files stay where they are; images of one small size are stored
    decoded beside their list. `report(stage, done, total)` is called as the work goes on.

    Example:
        >>> images = prepare_images("omniglot.zip", out="data/omniglot")  # doctest: +SKIP
        >>> images.meta.card["splits"]["train"]["classes"]  # doctest: +SKIP
        964

    Raises:
        InputError: a source, row, image or option that cannot be used; `out` is as it was.
        LongviewError: the disk is full; `out` is as it was.
    """
    config = parse(ImageOptions, options, "prepare")
    require_pillow()
    source, out, report = Path(source).expanduser(), Path(out), report or _silent
    store, listing = _listing(source, config)
    _protect(out, [source, store.path], overwrite)
    samples = _sift(store, listing, config, report)
    with atomic_directory(out, overwrite=overwrite) as work:
        _write(work, out, store, samples, config, report)
    report("writing", 1, 1)
    return ImageSet.open(out)


def _listing(source: Path, config: ImageOptions) -> tuple[Store, Listing]:
    """Return where the images are, and what is listed of them."""
    archive = source.is_file() and is_image_source(source)
    if config.layout == "table" or (config.layout == "auto" and source.is_file() and not archive):
        if archive or source.is_dir():
            raise InputError(f"{source}: a table of paths and labels expected (CSV, Parquet, Arrow)")
        listing = read_table(source, path_column=config.path, label_column=config.label)
        return open_store(config.root or source.parent), listing
    for name, value in (("root", config.root), ("path", config.path), ("label", config.label)):
        if value is not None:
            raise InputError(f"{name} is an option of tables of paths and labels, and {source} is none")
    store = open_store(source)
    return store, read_layout(store, config.layout)


def _sift(store: Store, listing: Listing, config: ImageOptions, report: Report) -> Samples:
    """Return the samples that can be used, and what was wrong with the others.

    Raises:
        InputError: images that cannot be read or have no label, and they are not to be skipped; none left.
    """
    entries = listing.entries
    if not entries:
        raise InputError(f"{store.path}: no images are listed")
    looked = list(_look(store, listing, config, report)) if config.check else _trust(listing)
    problems = [(entry, look.problem) for entry, look in zip(entries, looked, strict=True) if look.problem]
    named = [f"{entry.key} ({reason}{f'; {entry.place}' if entry.place else ''})" for entry, reason in problems]
    if problems and config.bad_images == "fail":
        raise InputError(
            f"{store.path}: {len(problems):,} of {len(entries):,} images cannot be used: {some(named)}. Mend them, or "
            "leave them out: --image bad_images=skip (in Python bad_images='skip')"
        )
    kept = [(entry, look) for entry, look in zip(entries, looked, strict=True) if not look.problem]
    if not kept:
        raise InputError(f"{store.path}: none of {len(entries):,} images can be used: {some(named)}")
    return Samples(
        listing=listing,
        entries=tuple(entry for entry, _ in kept),
        looked=tuple(look for _, look in kept) if config.check else None,
        problems=tuple(str(reason) for _, reason in problems),
        examples=tuple(named[:5]),
    )


def _look(store: Store, listing: Listing, config: ImageOptions, report: Report) -> Iterator[Looked]:
    entries = listing.entries
    keys = pa.array([entry.key for entry in entries], pa.string())
    boxes = pa.array([entry.box for entry in entries], pa.list_(pa.int32(), 4))
    reader = ImageReader(store, keys, boxes, config.max_pixels)
    with Workers[range, list[Looked]](reader.look, config.workers) as workers:
        pieces = (range(first, min(first + PIECE, len(entries))) for first in range(0, len(entries), PIECE))
        done = 0
        for found in workers.map(pieces):
            for look in found:
                yield look if entries[done].label is not None else Looked(problem="no label")
                done += 1
            report("reading", done, len(entries))


def _trust(listing: Listing) -> list[Looked]:
    """Return what is known without opening any image."""
    found = []
    for entry in listing.entries:
        try:
            safe_key(entry.key)
            found.append(Looked(problem=None if entry.label is not None else "no label"))
        except KeyRefusedError as error:
            found.append(Looked(problem=str(error)))
    return found


def _write(work: Path, out: Path, store: Store, samples: Samples, config: ImageOptions, report: Report) -> None:
    splits, notes = hold_out(samples.entries, config.test_classes)
    labels, names = number_classes(samples.entries, splits)
    table = _table(samples, labels, splits)
    packed = _pack(work / "pixels.npy", store, table, samples, config, report)
    card = count(store.path, samples, labels, splits, notes, packed)
    name = config.name or out.resolve().name
    meta = ImageMeta(
        name=name,
        layout=samples.listing.layout,
        source=_relative(store.path, out),
        num_images=table.num_rows,
        num_classes=len(names),
        max_pixels=config.max_pixels,
        packed=packed,
        fingerprint=card.fingerprint,
        card=card.model_dump(mode="json"),
    )
    write_arrow(work / "images.arrow", table)
    write_arrow(work / "classes.arrow", pa.table({"label": pa.array(names, pa.string())}))
    (work / "card.md").write_text(card.markdown(name), encoding="utf-8")
    write_json(work / "meta.json", meta.model_dump(mode="json"))


def _table(samples: Samples, labels: npt.NDArray[np.int32], splits: Sequence[str]) -> pa.Table:
    entries = samples.entries
    columns = {
        "key": pa.array([entry.key for entry in entries], pa.string()),
        "label": pa.array(labels, pa.int32()),
        "split": pa.array(splits, pa.string()).dictionary_encode(),
    }
    if any(entry.category is not None for entry in entries):
        columns["category"] = pa.array([entry.category for entry in entries], pa.string()).dictionary_encode()
    if any(entry.box is not None for entry in entries):
        columns["box"] = pa.array([entry.box for entry in entries], pa.list_(pa.int32(), 4))
    return pa.table(columns)


def _pack(
    file: Path, store: Store, table: pa.Table, samples: Samples, config: ImageOptions, report: Report
) -> Packed | None:
    """Write the decoded images where that was asked for, or where all are small, square and of one size."""
    channels = 1 if samples.looked is not None and all(look.grey for look in samples.looked) else 3
    side = config.pixels or _own_side(samples, channels)
    if side is None:
        return None
    boxes = table["box"].combine_chunks() if "box" in table.column_names else None
    reader = ImageReader(store, table["key"].combine_chunks(), boxes, config.max_pixels)
    shape = (table.num_rows, side, side, channels)
    mode: Mode = "L" if channels == 1 else "RGB"
    # Written, not mapped: on a full disk a write is an error that can be told, a mapped page ends the process.
    with Workers[Request, Loaded](reader.load, config.workers) as workers, file.open("wb") as out:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)  # type: ignore[no-untyped-call]
        pieces = [tuple(range(first, min(first + PIECE, shape[0]))) for first in range(0, shape[0], PIECE)]
        loads = workers.map(Request(rows, side, "crop", mode) for rows in pieces)
        for rows, loaded in zip(pieces, loads, strict=True):
            if loaded.problems:
                place, reason = loaded.problems[0]
                raise InputError(f"{store.path}: {table['key'][rows[place]]} cannot be read: {reason}")
            out.write(loaded.pixels.tobytes())
            report("storing", rows[-1] + 1, shape[0])
    return Packed(height=side, width=side, channels=1 if channels == 1 else 3)


def _own_side(samples: Samples, channels: int) -> int | None:
    """Return the side that all images have, where it is small and the same for all."""
    sizes = {(look.width, look.height) for look in samples.looked or ()}
    if len(sizes) != 1:
        return None
    ((width, height),) = sizes
    fits = len(samples.entries) * width * height * channels <= SMALL_BYTES
    return width if width == height <= SMALL_SIDE and fits else None


def _relative(source: Path, out: Path) -> str:
    """Return `source` as seen from `out` where they lie together, and so move together; else its absolute path."""
    source, out = source.resolve(), out.resolve()
    together = source.is_relative_to(out.parent) or out.is_relative_to(source)
    return os.path.relpath(source, out) if together else str(source)


def _protect(out: Path, read: Sequence[Path], overwrite: bool) -> None:
    """Refuse to replace a directory that holds an input, or that is something else than a prepared set."""
    target = out.resolve()
    for path in read:
        if target in (path.resolve(), *path.resolve().parents):
            raise InputError(f"{out} holds the images {path}: writing there would replace them; choose another")
    foreign = not out.is_dir() or (any(out.iterdir()) and not (out / "meta.json").exists())
    if overwrite and out.exists() and foreign:
        raise InputError(f"{out} is not a prepared data set, so it is not overwritten: remove it, or choose another")


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
