"""The picture of a retrieval: queries, their nearest images, and which of those are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longview.errors import InputError
from longview.evaluation.curves import INK, MUTED
from longview.evaluation.retrieval.ranking import RetrievalRanks
from longview.files import atomic_file

RIGHT, WRONG = "#0b7a75", "#c8442d"  # told apart without green and red, and each carries a mark besides
MARKS = {True: "✓", False: "✗"}
CELL = 1.0  # inches
LONGEST = 22  # characters of a label that fit beside a row

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class GalleryRow:
    """One query and its neighbours, nearest first: images (H, W), (H, W, 1) or (H, W, 3), uint8 or 0 to 1.

    right: None where nobody knows. note: stands below the label; by default how many are right.
    """

    query: Pixels
    label: str
    neighbours: Sequence[Pixels]
    right: Sequence[bool | None]
    note: str = ""


def draw_gallery(path: Path, rows: Sequence[GalleryRow], title: str = "") -> None:
    """Draw `rows` to the PNG file `path`: the query at the left, then its neighbours in a frame that says if right.

    Raises:
        InputError: matplotlib is not installed, nothing to draw, or an image of another shape.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the picture needs matplotlib: pip install 'longview[plots]'") from None
    if not rows:
        raise InputError("gallery picture: no query to draw")
    columns = max(len(row.neighbours) for row in rows)
    # In cells: label, query, a gap, the neighbours; above the rows the title and the heads of the columns.
    width, height = 1.9 + 1 + 0.3 + columns + 0.1, len(rows) + 0.85
    figure = Figure(figsize=(CELL * width, CELL * height), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    place: Callable[[float, float], Any] = lambda x, y: figure.add_axes(
        (x / width, 1 - (y + 1) / height, 1 / width, 1 / height)
    )
    write: Callable[..., Any] = lambda x, y, text, **style: figure.text(
        x / width, 1 - y / height, text, **{"color": MUTED} | style
    )
    write(0.1, 0.3, title, fontsize=11, fontweight="bold", color=INK, va="center")
    write(2.4, 0.68, "query", fontsize=8.5, ha="center", va="center")
    for number in range(columns):
        write(3.7 + number, 0.68, str(number + 1), fontsize=8.5, ha="center", va="center")
    for number, row in enumerate(rows):
        top = 0.8 + number
        below = row.note or f"{sum(map(bool, row.right))} of {len(row.right)} right"
        write(0.1, top + 0.45, _short(row.label), fontsize=9, color=INK, va="center")
        write(0.1, top + 0.65, below, fontsize=8, va="center")
        _draw(place(1.9, top), row.query, INK, None)
        for column, (image, good) in enumerate(zip(row.neighbours, row.right, strict=True)):
            colour, mark = (MUTED, None) if good is None else (RIGHT if good else WRONG, MARKS[good])
            _draw(place(3.2 + column, top), image, colour, mark)
    with atomic_file(path) as work:
        figure.savefig(work, format="png", metadata={"Software": None})


def gallery_rows(
    ranks: RetrievalRanks,
    query_image: Callable[[int], Pixels],
    gallery_image: Callable[[int], Pixels],
    *,
    queries: Sequence[int] | None = None,
    number: int = 8,
    columns: int = 8,
    seed: int = 0,
) -> list[GalleryRow]:
    """Return the rows of a picture of `ranks`.

    Args:
        ranks: of `rank_retrieval`.
        query_image, gallery_image: return the image at a place of the queries, of the gallery.
        queries: which to draw; by default `sample_queries`.
        number, columns: at most so many queries, and neighbours each.
        seed: of the sample.
    """
    chosen = sample_queries(ranks, number, seed) if queries is None else list(queries)
    rows = []
    for query in chosen:
        places = [int(place) for place in ranks.neighbours[query, :columns] if place >= 0]
        right = [bool(ranks.gallery_labels[place] == ranks.labels[query]) for place in places]
        images = [gallery_image(place) for place in places]
        rows.append(GalleryRow(query_image(query), ranks.names[ranks.labels[query]], images, right))
    return rows


def sample_queries(ranks: RetrievalRanks, number: int, seed: int = 0) -> list[int]:
    """Return queries to look at: half where the nearest image is right, half where it is wrong, at random.

    Where one kind has too few, the other fills up: the picture shows both kinds, not how often each occurs, so a title
    should say the recall. Queries without any relevant image come last and only to fill up.
    """
    random = np.random.default_rng(seed)
    kinds = (ranks.first_rank == 1, (ranks.first_rank > 1) & ~ranks.absent, ranks.absent)
    right, wrong, absent = (random.permutation(np.flatnonzero(kind)) for kind in kinds)
    few = max(number // 2, number - len(right))
    wrong = wrong[:few]
    right = right[: max(0, number - len(wrong))]
    absent = absent[: max(0, number - len(wrong) - len(right))]
    return [int(query) for query in np.concatenate([right, wrong, absent])]


def _draw(axes: Any, image: Pixels, colour: str, mark: str | None) -> None:
    """Draw `image`, its longer side 0.84 of a cell, in a frame of `colour`, with `mark` on a corner."""
    from matplotlib.patches import Rectangle

    pixels = _pixels(image)
    longer = max(pixels.shape[:2])
    height, width = (0.84 * side / longer for side in pixels.shape[:2])
    left, low = (1 - width) / 2, (1 - height) / 2
    box = (left, left + width, low, low + height)
    axes.set_axis_off()
    axes.imshow(pixels, extent=box, cmap="gray", vmin=0, vmax=255, interpolation="antialiased", aspect="auto")
    thick = 1.0 if mark is None else 2.4
    axes.add_patch(Rectangle((left, low), width, height, fill=False, edgecolor=colour, linewidth=thick))
    if mark is not None:
        badge = {"boxstyle": "circle,pad=0.15", "facecolor": colour, "edgecolor": "white", "linewidth": 0.8}
        axes.text(
            left + width - 0.01, low + height - 0.01, mark, fontsize=7, color="white", ha="center", va="center",
            fontweight="bold", bbox=badge, family="DejaVu Sans",
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _pixels(image: Pixels) -> Pixels:
    """Return (H, W) or (H, W, 3) uint8."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise InputError(
            f"gallery picture: an image of shape {np.shape(image)}; expected (H, W), (H, W, 1) or (H, W, 3)"
        )
    if pixels.dtype != np.uint8:
        pixels = (255 * pixels.astype(np.float64).clip(0, 1)).round().astype(np.uint8)
    return pixels


def _short(text: str) -> str:
    """Return `text` cut in the middle: the end of a label such as `alphabet/character` tells it apart."""
    half = (LONGEST - 1) // 2
    return text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}"
