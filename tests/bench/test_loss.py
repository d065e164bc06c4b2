"""The benchmark of the losses: what it refuses here, and on a GPU what it reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longview.bench import loss
from longview.bench.loss import Full, Sampled, Table, bench_loss
from longview.errors import InputError
from tests.bench.written import read_written

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(InputError, match="no CUDA GPU"):
        bench_loss()


def test_the_quoted_settings_reach_a_million_items_and_width_512() -> None:
    assert max(one.items for one in loss.FULL) == 1_000_000
    assert {one.width for one in loss.FULL} == {128, 512}
    assert loss._work(100, Full(10, 100, 8)) == 3 * 2 * 10 * 100 * 8


@needs_gpu
def test_a_measurement_has_its_peaks_and_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "FULL", (Full(100, 300, 32),))
    monkeypatch.setattr(loss, "SAMPLED", (Sampled(100, 20, 4, 32, 300),))
    monkeypatch.setattr(loss, "TABLE", Table(1000, 300, 32))
    monkeypatch.setattr(loss, "POSITIONS", Table(1000, 30, 32, 0.0))
    result = bench_loss(tmp_path / "loss.json", rounds=2)
    assert read_written(tmp_path / "loss.json") == result
    (full,) = result["full"]
    assert set(full["providers"]) == {"default", "triton", "triton-blocked", "blocked", "compiled cross_entropy"}
    for kind in ("full", "sampled", "update", "gradient"):
        for setting in result[kind]:
            for row in setting["providers"].values():
                assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
                assert row["peak_mib"] > 0
