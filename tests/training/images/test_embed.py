"""Vectors of images: the same from a prepared set, a folder or an archive, by path."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from longview.data.images import ImageSet
from longview.errors import InputError
from longview.training.images import LoadedImageRun, load_image_run
from longview.training.images.embed import embed_images, write_vectors


@pytest.fixture(scope="module")
def run(image_run: Path) -> LoadedImageRun:
    return load_image_run(image_run)


def test_a_prepared_set_its_folder_and_an_archive_give_the_same(
    run: LoadedImageRun, image_set: ImageSet, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", image_set.root)
    found = [embed_images(run, source).table for source in (image_set.path, image_set.root, Path(archive))]
    vectors = [dict(zip(t["path"].to_pylist(), t["vector"].to_pylist(), strict=True)) for t in found]
    assert len(vectors[0]) == len(image_set)
    assert vectors[1] == vectors[2]
    assert vectors[0].keys() == vectors[1].keys()
    one, other = (np.array([v[key] for key in sorted(vectors[0])]) for v in vectors[:2])
    np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)


def test_an_image_that_cannot_be_read_is_named_or_skipped(
    run: LoadedImageRun, image_set: ImageSet, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(image_set.root / "class00", folder)
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.png cannot be read"):
        embed_images(run, folder)
    found = embed_images(run, folder, skip_bad=True)
    assert found.table.num_rows == 6
    assert list(found.skipped) == ["broken.png"]


def test_a_folder_without_images_is_refused(run: LoadedImageRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image"):
        embed_images(run, tmp_path)


def test_the_suffix_says_the_format(run: LoadedImageRun, image_set: ImageSet, tmp_path: Path) -> None:
    table = embed_images(run, image_set.path).table
    write_vectors(tmp_path / "vectors.parquet", table)
    assert pq.read_table(tmp_path / "vectors.parquet").num_rows == len(image_set)
    with pytest.raises(InputError, match=r"\.parquet or \.arrow"):
        write_vectors(tmp_path / "vectors.csv", table)
