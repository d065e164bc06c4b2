"""bf16 only where it pays, and a reason where it is off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longview.data.dataset import PreparedData
from longview.training import train
from longview.training.config import RunConfig
from longview.training.precision import choose_precision

CPU = torch.device("cpu")


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    def has_bf16(answer: bool) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: answer)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    return has_bf16


def test_a_cpu_with_bf16_units_uses_them(cpu: Callable[[bool], None]) -> None:
    cpu(True)
    assert choose_precision("bf16", CPU) == (torch.bfloat16, None)


def test_a_cpu_without_says_why(cpu: Callable[[bool], None]) -> None:
    cpu(False)
    dtype, note = choose_precision("bf16", CPU)
    assert dtype == torch.float32
    assert note is not None
    assert "neither AVX512-BF16 nor AMX" in note


def test_float32_needs_no_excuse() -> None:
    assert choose_precision("float32", CPU) == (torch.float32, None)


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_records_why_bf16_is_off(
    cpu: Callable[[bool], None],
    tiny: PreparedData,
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    fast: bool,
) -> None:
    cpu(fast)
    result = train(tiny_config("loop.precision=bf16", "loop.epochs=3"), tiny, tmp_path / "run")
    assert bool(result.notes) is not fast
    assert result.state.epochs[-1]["loss"] < result.state.epochs[0]["loss"]
