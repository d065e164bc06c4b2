"""Images nearest to an image, among those of a folder, a zip archive, a prepared set, or a file of vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

from longview.data.images import ImageSet
from longview.data.images.decode import MAX_PIXELS, ImageError, decode
from longview.data.images.imageset import is_image_set
from longview.data.images.reader import ImageReader, Request, explain
from longview.data.images.store import FolderStore, KeyRefusedError, open_store
from longview.errors import InputError
from longview.evaluation.gallery import GalleryRow
from longview.ops.topk import blocked_topk
from longview.training.images.embed import embed_images
from longview.training.images.rundir import LoadedImageRun

VECTOR_FILES = (".parquet", ".arrow")
SHOWN = 256  # pixels a side that are enough for a picture

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Gallery:
    """Images to look among.

    keys: their paths below `source`. vectors: (n, d) float32 of length 1. labels: their classes, where they are known.
    image: returns the pixels at a place; None for a file of vectors. root: the folder they lie in, if it is one.
    skipped: files that cannot be read, with the reason.
    """

    source: Path
    keys: list[str]
    vectors: Tensor
    labels: list[str] | None = None
    image: Callable[[int], Pixels] | None = None
    root: Path | None = None
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Query:
    """An image to find others like: `own` is its place in the gallery, None where it is not of it."""

    name: str
    vector: Tensor
    pixels: Callable[[], Pixels] | None
    own: int | None


def open_gallery(
    run: LoadedImageRun, source: str | Path, *, workers: int = 0, device: torch.device | str = "cpu"
) -> Gallery:
    """Return the images of `source` with their vectors; those that cannot be read are left out, and named.

    `source`: a folder, a zip archive, a prepared set, or what `longview embed` wrote.

    Raises:
        InputError: nothing of the kind, no image that can be read, or vectors of another run's width.
    """
    source = Path(source)
    if source.suffix in VECTOR_FILES and not source.is_dir():
        return _read_vectors(source, run)
    found = embed_images(run, source, workers=workers, skip_bad=True, device=device)
    keys: list[str] = found.table["path"].to_pylist()
    vectors = _matrix(found.table["vector"])
    if not is_image_set(source):
        store = open_store(source)
        root = source if source.is_dir() else None
        shown = lambda place: _shown(store.read(keys[place]))
        return Gallery(source, keys, vectors, None, shown, root, found.skipped)
    images = ImageSet.open(source)
    rows = {key: row for row, key in enumerate(images.table["key"].to_pylist())}
    labels = [images.label_names[images.labels[rows[key]]] for key in keys]
    root = images.root if images.root.is_dir() else None
    pixels = images.pixels
    if pixels is not None:
        return Gallery(source, keys, vectors, labels, lambda place: pixels[rows[keys[place]]], root, found.skipped)
    reader = images.reader()
    shown = lambda place: _shown(reader.read(rows[keys[place]]))
    return Gallery(source, keys, vectors, labels, shown, root, found.skipped)


@torch.no_grad()
def open_query(run: LoadedImageRun, name: str, gallery: Gallery, device: torch.device | str = "cpu") -> Query:
    """Return the image of file `name`, or where there is none the image of the gallery with that path.

    Raises:
        InputError: neither of them, or a file that cannot be read as an image; it says why.
    """
    file = Path(name)
    if not file.is_file():
        if name in gallery.keys:
            own = gallery.keys.index(name)
            image = gallery.image
            return Query(name, gallery.vectors[own], None if image is None else lambda: image(own), own)
        what = "a folder: give one image, and the folder as --gallery" if file.is_dir() else "no such file"
        example = f"; its paths are like {gallery.keys[0]}" if gallery.keys else ""
        raise InputError(f"{name}: {what}, and {gallery.source} has no image of that path{example}")
    place = file.resolve()
    framing, store = run.framing, FolderStore(place.parent)
    reader = ImageReader(store, pa.array([place.name]), None, MAX_PIXELS)
    loaded = reader.load(Request((0,), framing.size, framing.fit, framing.mode))
    if loaded.problems:
        raise InputError(f"{name} cannot be read: {loaded.problems[0][1]}")
    images = framing.unit(torch.from_numpy(np.ascontiguousarray(loaded.pixels)))
    vector = functional.normalize(run.encoder(images.to(device)).float(), dim=1)[0].cpu()
    if not bool(vector.isfinite().all()):
        raise InputError(f"{run.path}: the vector of {name} is not a number; the model is broken: train again")
    inside = gallery.root is not None and place.is_relative_to(gallery.root.resolve())
    key = place.relative_to(gallery.root.resolve()).as_posix() if inside and gallery.root is not None else None
    known = None if key is None or key not in gallery.keys else gallery.keys.index(key)
    return Query(name, vector, lambda: _shown(place.read_bytes()), known)


def nearest_images(queries: Sequence[Query], gallery: Gallery, k: int) -> pa.Table:
    """Return the `k` images nearest to each query by cosine: columns query, rank, path, [label,] similarity.

    An image is not its own neighbour. Equal ones come in the order of the gallery.

    Raises:
        InputError: `k` below 1.
    """
    if k < 1:
        raise InputError(f"{k} neighbours: at least 1 expected (-k)")
    own = [[] if query.own is None else [query.own] for query in queries]
    offsets = torch.tensor([0, *np.cumsum([len(one) for one in own]).tolist()])
    exclude = (torch.tensor([place for one in own for place in one], dtype=torch.int64), offsets)
    vectors = torch.stack([query.vector for query in queries])
    scores, places = blocked_topk(vectors, gallery.vectors, min(k, len(gallery.keys)), exclude=exclude)
    rows = [
        (query.name, rank, int(place), float(score))
        for query, near, score_row in zip(queries, places, scores, strict=True)
        for rank, (place, score) in enumerate(zip(near, score_row, strict=True), 1)
        if place >= 0
    ]
    columns: dict[str, pa.Array] = {
        "query": pa.array([row[0] for row in rows], pa.string()),
        "rank": pa.array([row[1] for row in rows], pa.int64()),
        "path": pa.array([gallery.keys[row[2]] for row in rows], pa.string()),
    }
    if gallery.labels is not None:
        columns["label"] = pa.array([gallery.labels[row[2]] for row in rows], pa.string())
    return pa.table({**columns, "similarity": pa.array([row[3] for row in rows], pa.float32())})


def picture_rows(queries: Sequence[Query], gallery: Gallery, table: pa.Table) -> list[GalleryRow]:
    """Return the rows of a picture of what `nearest_images` found.

    Raises:
        InputError: a gallery that is a file of vectors, which has no images.
    """
    if gallery.image is None:
        raise InputError(
            f"{gallery.source} holds vectors and no images, so there is no picture: give --gallery the images"
        )
    places = {key: place for place, key in enumerate(gallery.keys)}
    found = table.to_pylist()
    rows = []
    for query in queries:
        near = [row for row in found if row["query"] == query.name]
        label = None if gallery.labels is None or query.own is None else gallery.labels[query.own]
        right = [None if label is None else row["label"] == label for row in near]
        images = [gallery.image(places[row["path"]]) for row in near]
        assert query.pixels is not None
        nearest = f"nearest {near[0]['similarity']:.3f}" if near else "no other image"
        rows.append(GalleryRow(query.pixels(), Path(query.name).name, images, right, nearest))
    return rows


def _read_vectors(file: Path, run: LoadedImageRun) -> Gallery:
    """Return what `longview embed` wrote."""
    if not file.is_file():
        raise InputError(f"{file}: no such file; longview embed {run.path} IMAGES --out {file} writes one")
    try:
        table = pq.read_table(file) if file.suffix == ".parquet" else pa.ipc.open_file(file).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file}: not a {file.suffix[1:]} file, or a damaged one ({error})") from None
    kind = table.schema.field("vector").type if "vector" in table.column_names else pa.null()
    if "path" not in table.column_names or not isinstance(kind, pa.FixedSizeListType):
        raise InputError(f"{file}: columns path and vector expected, as longview embed writes them")
    if kind.list_size != run.encoder.dimension:
        raise InputError(
            f"{file}: vectors of {kind.list_size} dimensions, and those of {run.path} have {run.encoder.dimension}; "
            f"write them with this run: longview embed {run.path} IMAGES --out {file}"
        )
    vectors = _matrix(table["vector"])
    if not len(vectors) or not bool(vectors.isfinite().all()):
        raise InputError(
            f"{file}: {'no vectors' if not len(vectors) else 'vectors that are not numbers'}; write it anew"
        )
    return Gallery(file, table["path"].to_pylist(), functional.normalize(vectors, dim=1))


def _matrix(column: pa.ChunkedArray) -> Tensor:
    """Return (n, d) float32 of a column of lists of one size."""
    values = column.combine_chunks()
    parts = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    flat = [part.flatten().to_numpy(zero_copy_only=False) for part in parts] or [np.empty(0)]
    return torch.from_numpy(np.concatenate(flat).astype(np.float32)).view(-1, column.type.list_size)


def _shown(data: bytes) -> Pixels:
    """Return the pixels of a file for a picture."""
    try:
        return np.asarray(decode(data, at_least=SHOWN))
    except (ImageError, KeyRefusedError, OSError) as error:
        raise InputError(f"an image of the picture cannot be read: {explain(error)}") from None
