"""Kernels beside the tuned ones compile for a Hopper GPU, and keep everything in registers."""

from __future__ import annotations

import pytest

from tests.ops.offline import compiled


@pytest.mark.slow
def test_they_compile_for_hopper_and_spill_nothing() -> None:
    for row in compiled("tests.ops.joining"):
        assert row["stack"] == 0, row
