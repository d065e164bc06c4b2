"""The vectors of images by a trained encoder, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

from longview.data.dataset import write_arrow
from longview.data.images import ImageSet
from longview.data.images.decode import MAX_PIXELS, require_pillow
from longview.data.images.imageset import is_image_set
from longview.data.images.reader import ImageReader, Loaded, Request
from longview.data.images.store import KeyRefusedError, open_store
from longview.data.images.workers import Workers
from longview.errors import InputError
from longview.files import atomic_file
from longview.training.images.rundir import LoadedImageRun

AT_ONCE = 64  # images a task of a worker


@dataclass(frozen=True)
class Embedding:
    """`table`: `path` (string, below the source) and `vector` (float32, `width`, of length 1); what was `skipped`."""

    table: pa.Table
    width: int
    skipped: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def embed_images(
    run: LoadedImageRun,
    source: str | Path,
    *,
    workers: int = 0,
    skip_bad: bool = False,
    device: torch.device | str = "cpu",
) -> Embedding:
    """Return the vectors of all images of `source`: a folder, a zip archive, or a prepared set.

    Vectors have length 1, as the loss and the evaluation compare them: their inner product is the cosine.

    Raises:
        InputError: no images there, a name in an archive that leaves it, an image that cannot be read and is not to
            be skipped, or vectors that are not numbers.
    """
    source = Path(source)
    vectors: list[Tensor] = []
    keys: list[str] = []
    skipped: dict[str, str] = {}
    for chosen, loaded in _loads(run, source, workers):
        skipped |= {chosen[place]: reason for place, reason in loaded.problems}
        if loaded.problems and not skip_bad:
            place, reason = loaded.problems[0]
            raise InputError(f"{source}: {chosen[place]} cannot be read: {reason}. Leave it out, or pass --skip-bad")
        if loaded.kept:
            pixels = run.framing.unit(torch.from_numpy(np.ascontiguousarray(loaded.pixels)))
            vectors.append(functional.normalize(run.encoder(_sized(pixels, run).to(device)).float(), dim=1).cpu())
            keys += [chosen[place] for place in loaded.kept]
    if not keys:
        raise InputError(f"{source}: no image that can be read; a folder or a zip archive of images is expected")
    values = torch.cat(vectors)
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).any(1).nonzero()[0])
        raise InputError(f"{run.path}: the vector of {keys[row]} is not a number; the model is broken: train again")
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.numpy().reshape(-1)), values.shape[1])
    return Embedding(pa.table({"path": pa.array(keys, pa.string()), "vector": column}), values.shape[1], skipped)


def check_suffix(out: Path) -> None:
    """Refuse a file whose suffix says no format that vectors are written in."""
    if out.suffix not in (".parquet", ".arrow"):
        raise InputError(f"{out}: a file ending in .parquet or .arrow expected")


def write_vectors(out: Path, table: pa.Table) -> None:
    """Write `table` to `out`, Parquet or Arrow IPC by its suffix, atomically.

    Raises:
        InputError: another suffix.
    """
    check_suffix(out)
    with atomic_file(out) as work:
        if out.suffix == ".parquet":
            pq.write_table(table, work)
        else:
            write_arrow(work, table)


def _loads(run: LoadedImageRun, source: Path, workers: int) -> Iterator[tuple[list[str], Loaded]]:
    """Yield keys and pixels, some images at a time."""
    prepared = ImageSet.open(source) if is_image_set(source) else None
    if prepared is not None and prepared.pixels is not None:
        keys: list[str] = prepared.table["key"].to_pylist()
        for rows in _pieces(len(keys)):
            yield [keys[row] for row in rows], Loaded(prepared.pixels[list(rows)], tuple(range(len(rows))), ())
        return
    require_pillow()
    if prepared is not None:
        reader = prepared.reader()
    else:
        store = open_store(source)
        try:
            found = pa.array(list(store.images()), pa.string())
        except KeyRefusedError as error:
            raise InputError(f"{source}: refused, a name in the archive is dangerous: {error}") from None
        reader = ImageReader(store, found, None, MAX_PIXELS)
    keys = reader.keys.to_pylist()
    framing = run.framing
    with Workers[Request, Loaded](reader.load, workers) as pool:
        requests = (Request(rows, framing.size, framing.fit, framing.mode) for rows in _pieces(len(keys)))
        for rows, loaded in zip(_pieces(len(keys)), pool.map(requests), strict=True):
            yield [keys[row] for row in rows], loaded


def _pieces(number: int) -> Iterator[tuple[int, ...]]:
    for first in range(0, number, AT_ONCE):
        yield tuple(range(first, min(first + AT_ONCE, number)))


def _sized(images: Tensor, run: LoadedImageRun) -> Tensor:
    size = run.framing.size
    if tuple(images.shape[-2:]) == (size, size):
        return images
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
