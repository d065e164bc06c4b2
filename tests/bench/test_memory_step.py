"""The benchmark of training steps with a memory: every provider, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longview.bench import memory_step
from longview.bench.memory_step import Setting, bench_memory_step
from longview.errors import InputError
from tests.bench.written import read_written


def test_every_provider_is_timed_beside_plain_xbm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_step, "CPU", (Setting(8, 32, 8),))
    result = bench_memory_step(tmp_path / "step.json", rounds=2)
    assert read_written(tmp_path / "step.json") == result
    (setting,) = result["settings"]
    assert set(setting["providers"]) == set(memory_step.PROVIDERS)
    assert setting["providers"]["XBM"]["over_xbm"] == 0
    for row in setting["providers"].values():
        low, high = row["over_xbm_interval"]
        assert low <= row["over_xbm"] <= high
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]


def test_the_memory_is_full_from_the_first_timed_step() -> None:
    setting = Setting(8, 20, 4)
    loss = memory_step._loss(setting, memory_step.PROVIDERS["AXBN"])
    memory_step._fill(loss, setting, "cpu", memory_step.small_encoder(4))  # type: ignore[arg-type]
    assert len(loss.memory) == 20  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_cannot_be_timed_is_refused() -> None:
    with pytest.raises(InputError, match="no CUDA GPU"):
        bench_memory_step(device="cuda")
    with pytest.raises(InputError, match="expected cpu or cuda"):
        bench_memory_step(device="tpu")
