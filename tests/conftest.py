"""Fixtures of the whole test suite."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Without a GPU the kernels run in Triton's interpreter, which must be on before anything imports triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


# No test asserts on time.
settings.register_profile("longview", deadline=None)
settings.load_profile("longview")


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return a function from a name such as `"ml-1m/movies.dat"` to its path; the test is skipped without it.

    The folder is `LONGVIEW_DATA`, or `shared/data` beside the repository.
    """
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LONGVIEW_DATA", default))

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"real data {name} is not in {folder}; set LONGVIEW_DATA to the folder that holds it")
        return path

    return find
