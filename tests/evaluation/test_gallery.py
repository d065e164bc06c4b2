"""The picture of a retrieval: which queries it shows, what it says of them, images it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from longview.errors import InputError
from longview.evaluation.gallery import RIGHT, WRONG, GalleryRow, draw_gallery, gallery_rows, sample_queries
from longview.evaluation.retrieval import Embedded, RetrievalConfig, RetrievalRanks, rank_retrieval

WHITE = np.full((6, 6), 255, np.uint8)


@pytest.fixture(scope="module")
def ranks() -> RetrievalRanks:
    noise = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    vectors = 1.3 * torch.eye(8)[torch.arange(60) % 8] + noise  # near enough to the class for some
    labels = [f"class {i % 8}" for i in range(59)] + ["alone"]
    return rank_retrieval(Embedded(vectors, labels), config=RetrievalConfig(neighbours=5))


def test_half_of_the_queries_are_right_and_half_wrong(ranks: RetrievalRanks) -> None:
    chosen = sample_queries(ranks, 8, seed=3)
    assert len(set(chosen)) == 8
    assert [ranks.first_rank[query] == 1 for query in chosen] == [True] * 4 + [False] * 4
    assert 59 not in chosen  # nothing could be right for it
    assert sample_queries(ranks, 8, seed=3) == chosen != sample_queries(ranks, 8, seed=4)


def test_one_kind_fills_up_for_the_other(ranks: RetrievalRanks) -> None:
    assert sorted(sample_queries(ranks, 1000)) == list(range(60))
    right = int((ranks.first_rank == 1).sum())
    chosen = sample_queries(ranks, 2 * right + 10)
    assert (ranks.first_rank[chosen] == 1).sum() == right
    assert len(chosen) == 2 * right + 10


def test_rows_say_which_neighbours_are_of_the_class(ranks: RetrievalRanks) -> None:
    image = lambda place: np.full((2, 2), place, np.uint8)
    row = gallery_rows(ranks, image, image, queries=[7], columns=4)[0]
    places = [int(neighbour[0, 0]) for neighbour in row.neighbours]
    assert places == ranks.neighbours[7, :4].tolist()
    assert row.label == "class 7"
    assert list(row.right) == [place % 8 == 7 and place < 59 for place in places]


@pytest.mark.parametrize("shape", [(6, 6), (4, 9, 1), (9, 4, 3)])
def test_frames_are_coloured_by_right_and_wrong(shape: tuple[int, ...], tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed: pip install 'longview[plots]'")
    for right, present, missing in ((True, RIGHT, WRONG), (False, WRONG, RIGHT)):
        row = GalleryRow(WHITE, "a label that is far too long for its place", [np.ones(shape)], [right])
        draw_gallery(tmp_path / "gallery.png", [row], "title")
        pixels = (image.imread(tmp_path / "gallery.png")[:, :, :3] * 255).round().astype(int).reshape(-1, 3)
        count = lambda colour, found=pixels: int(
            (found == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(1).sum()
        )
        assert count(present) > 200
        assert count(missing) == 0


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'longview[plots]'")
    with pytest.raises(InputError, match="no query"):
        draw_gallery(tmp_path / "g.png", [])
    with pytest.raises(InputError, match=r"shape \(2, 2, 4\)"):
        draw_gallery(tmp_path / "g.png", [GalleryRow(np.zeros((2, 2, 4)), "a", [], [])])
    assert not (tmp_path / "g.png").exists()
