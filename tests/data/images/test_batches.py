"""Batches of images: the same whatever the workers, wherever an epoch is resumed, on any number of ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from longview.data.images import Augment, Framing, ImageBatch, ImageBatches, ImageSet, InOrder, prepare_images
from longview.data.images.samplers import CoveringBatches
from longview.data.images.workers import Workers
from longview.errors import InputError, LongviewError
from tests.data.images import pictures
from tests.data.images.pictures import put

ALL = Augment(crop_area=(0.5, 1.0), crop_aspect=(0.8, 1.25), flip=0.5, rotation=20, shift=0.1, erase=0.5, oversize=1.5)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("images")
    return prepare_images(
        pictures.folders(folder / "p", classes=6, each=4), out=folder / "d", workers=0, test_classes=0
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("packed")
    return prepare_images(pictures.omniglot(folder / "o"), out=folder / "d", workers=0)


def sampler(images: ImageSet, rank: int = 0, world_size: int = 1) -> CoveringBatches:
    labels = images.train.labels
    return CoveringBatches(labels, classes_per_batch=2, samples_per_class=2, rank=rank, world_size=world_size)


def batches(images: ImageSet, workers: int = 0, first_step: int = 0, rank: int = 0, world: int = 1) -> list[ImageBatch]:
    chosen = sampler(images, rank, world)
    with ImageBatches(images.train, chosen, Framing(size=8), augment=ALL, workers=workers, seed=3) as source:
        return list(source.epoch(1, first_step))


def same(some: list[ImageBatch], others: list[ImageBatch]) -> bool:
    fields = ("images", "labels", "ids")
    return len(some) == len(others) and all(
        torch.equal(getattr(one, field), getattr(other, field))
        for one, other in zip(some, others, strict=True)
        for field in fields
    )


def test_what_a_batch_holds(images: ImageSet) -> None:
    found = batches(images)
    assert len(found) == sampler(images).steps(1)
    for batch in found:
        assert (batch.images.shape, batch.images.dtype) == ((4, 3, 8, 8), torch.float32)
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1
        assert batch.labels.tolist() == images.labels[batch.ids.numpy()].tolist()
        assert len(batch) == 4
    assert {int(number) for batch in found for number in batch.ids} == set(range(24))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_bit(images: ImageSet, workers: int) -> None:
    assert same(batches(images), batches(images, workers))


def test_an_epoch_resumes_at_any_step(images: ImageSet) -> None:
    whole = batches(images)
    for step in range(len(whole)):
        assert same(whole[step:], batches(images, first_step=step))
    with ImageBatches(images.train, sampler(images), Framing(size=8), augment=ALL, seed=3) as source:
        assert not same(whole, list(source.epoch(2)))


class Same(InOrder):
    """The same images at every step."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[torch.Tensor]:
        for _ in range(first_step, 2):
            yield torch.arange(self.batch_size)


def test_every_step_and_epoch_changes_images_otherwise(packed: ImageSet) -> None:
    source = ImageBatches(packed.train, Same(2, 2), Framing(size=8), augment=ALL)
    (first, second), (later, _) = source.epoch(0), source.epoch(1)
    assert torch.equal(first.ids, second.ids)
    assert not torch.equal(first.images, second.images)
    assert not torch.equal(first.images, later.images)


def test_ranks_see_parts_of_the_same_batches(images: ImageSet) -> None:
    parts = [batches(images, rank=rank, world=2) for rank in (0, 1)]
    for whole, *own in zip(batches(images), *parts, strict=True):
        assert torch.equal(torch.cat([part.images for part in own]), whole.images)
        assert torch.equal(torch.cat([part.ids for part in own]), whole.ids)


def test_an_epoch_left_early_can_be_begun_again(images: ImageSet) -> None:
    with ImageBatches(images.train, sampler(images), Framing(size=8), augment=ALL, workers=2, seed=3) as source:
        next(source.epoch(1))
        assert same(list(source.epoch(1)), batches(images))


def test_packed_images_are_those_of_the_files(packed: ImageSet) -> None:
    from_files = dataclasses.replace(packed, meta=packed.meta.model_copy(update={"packed": None}))
    assert packed.pixels is not None
    assert from_files.pixels is None
    for framing in (Framing(size=8, channels=1), Framing(size=8, channels=3)):
        some, others = (
            list(ImageBatches(each.query, InOrder(6, 4), framing).epoch(0)) for each in (packed, from_files)
        )
        assert same(some, others)
        assert some[0].images.shape == (4, *framing.shape)
    assert next(iter(ImageBatches(packed.query, InOrder(6, 4), Framing(size=5)).epoch(0))).images.shape == (4, 3, 5, 5)


def test_labels_and_ids_of_a_view_are_those_of_the_set(packed: ImageSet) -> None:
    (batch,) = ImageBatches(packed.query, InOrder(6, 6), Framing(size=8, channels=1)).epoch(0)
    assert batch.ids.tolist() == packed.query.rows.tolist()
    assert set(batch.labels.tolist()) == {2, 3}


def test_in_order_every_sample_comes_once_on_any_number_of_ranks() -> None:
    for world in (1, 2, 3):
        ranks = [InOrder(11, 2, rank=rank, world_size=world) for rank in range(world)]
        assert sorted(int(s) for rank in ranks for batch in rank.epoch(0) for s in batch) == list(range(11))
        assert all(len(list(rank.epoch(0))) == rank.steps(0) for rank in ranks)
    assert [batch.tolist() for batch in InOrder(5, 2).epoch(0, 1)] == [[2, 3], [4]]


def test_bad_images_fail_by_name_or_are_skipped_and_counted(tmp_path: Path) -> None:
    source = pictures.folders(tmp_path / "p", classes=2, each=2)
    data = prepare_images(source, out=tmp_path / "d", workers=0, test_classes=0)
    put(source / "class0" / "1.png", b"damaged since")
    for workers in (0, 1):
        with (
            ImageBatches(data.train, InOrder(4, 4), Framing(size=8), workers=workers) as fatal,
            pytest.raises(InputError, match=r"class0/1\.png cannot be read"),
        ):
            list(fatal.epoch(0))
        with ImageBatches(data.train, InOrder(4, 4), Framing(size=8), workers=workers, bad_images="skip") as lenient:
            (batch,) = lenient.epoch(0)
            assert batch.ids.tolist() == [0, 2, 3]
            assert list(lenient.skipped) == [1]
    (source / "class0" / "0.png").unlink()
    with pytest.raises(InputError, match="no image of this batch"):
        list(ImageBatches(data.train, InOrder(2, 2), Framing(size=8), bad_images="skip").epoch(0))


def test_a_skipped_image_changes_nothing_for_the_others(images: ImageSet, tmp_path: Path) -> None:
    moved = tmp_path / "p"
    moved.mkdir()
    for file in images.root.rglob("*.png"):
        if file.parent.name != "class1":
            put(moved / file.relative_to(images.root), file.read_bytes())
    partial = ImageSet.open(images.path, root=moved)
    loose = ImageBatches(partial.train, InOrder(24, 24), Framing(size=8), augment=ALL, bad_images="skip")
    whole = ImageBatches(images.train, InOrder(24, 24), Framing(size=8), augment=ALL)
    (some,), (every,) = loose.epoch(0), whole.epoch(0)
    assert torch.equal(some.images, every.images[some.ids])
    assert len(some) == 20


def test_a_worker_that_ends_is_reported() -> None:
    with Workers(os._exit, 1) as workers, pytest.raises(LongviewError, match="worker processes ended"):
        list(workers.map([1]))


KILLED = """
import os, signal
from longview.data.images.workers import Workers

with Workers(abs, 3) as workers:
    print(sum(workers.map(range(20))), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_workers_end_when_their_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, start_new_session=True) as parent:
        try:
            printed, _ = parent.communicate(timeout=60)  # the pipe closes when the last worker has ended
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)
    assert printed.strip() == b"190"
    assert parent.returncode == -signal.SIGKILL


def test_workers_take_tasks_only_a_little_ahead() -> None:
    taken: list[int] = []

    def tasks() -> object:
        for number in range(50):
            taken.append(number)
            yield number

    with Workers(abs, 1) as workers:
        results = workers.map(tasks())  # type: ignore[arg-type]
        assert next(results) == 0
        assert len(taken) < 6
        assert list(results) == list(range(1, 50))
