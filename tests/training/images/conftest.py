"""A prepared set of 12 classes × 6 images, 4 classes for the test, and a configuration that trains in a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from longview.data.images import ImageSet, prepare_images
from longview.training.images import ImageRunConfig, resolve_image_config, train_images
from tests.image_classes import SETTINGS, write_classes

Configure = Callable[..., ImageRunConfig]


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Images so small are trained on faster by one thread, most of all beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("classes")
    return prepare_images(write_classes(folder / "source"), out=folder / "data", workers=0, test_classes=0.34)


@pytest.fixture
def configure() -> Configure:
    return lambda *overrides: resolve_image_config("image-small", [*SETTINGS, *overrides])


@pytest.fixture(scope="session")
def image_run(image_set: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `configure()`; copy it before changing it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train_images(resolve_image_config("image-small", SETTINGS), image_set, out)
    return out
