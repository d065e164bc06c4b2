"""Kernels beside the tuned ones compile for a Hopper GPU, and keep everything in registers."""

from __future__ import annotations

import pytest

from tests.ops.offline import compiled

TWO_NUMBERS = {"filter moving average d=512": 8}  # bytes that the assembler leaves on the stack


@pytest.mark.slow
def test_they_compile_for_hopper_and_spill_nothing_but_two_numbers() -> None:
    for row in compiled("tests.ops.joining"):
        assert row["stack"] <= TWO_NUMBERS.get(row["name"], 0), row
