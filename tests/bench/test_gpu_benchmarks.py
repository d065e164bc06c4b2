"""The GPU benchmarks: refused without a GPU, drawn and tabulated from their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from longview.bench.attention_gpu import bench_attention_gpu, default_settings, jagged_settings
from longview.bench.attention_plot import draw_attention
from longview.bench.scoring import bench_scoring
from longview.bench.step import bench_step
from longview.errors import InputError
from longview.evaluation.speed_table import ROWS

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@NO_GPU
@pytest.mark.parametrize("bench", [bench_attention_gpu, bench_step, bench_scoring])
def test_without_a_gpu_it_says_so(bench: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this machine has no CUDA GPU; see longview doctor"):
        bench(tmp_path / "result.json")
    assert not list(tmp_path.iterdir())


def test_every_setting_has_as_many_tokens() -> None:
    assert {sum(setting.lengths) for setting in default_settings()} == {65536}
    assert all(len(set(setting.lengths)) > 1 for setting in jagged_settings())


def result() -> dict[str, Any]:
    """A made-up result of the form that the benchmark writes."""

    def row(milliseconds: float) -> dict[str, float]:
        return {"median_ms": milliseconds, "tflops": 100 / milliseconds, "full_causal_ms": 2 * milliseconds}

    def setting(mask: str, length: int, dim: int, *others: str) -> dict[str, Any]:
        both = {"forward": row(0.5), "backward": row(2.0)}
        return {
            "name": f"{mask}, {length} tokens, dim {dim}",
            "tokens": 65536,
            "sequences": 65536 // length,
            "longest": length,
            "dim": dim,
            "providers": dict.fromkeys(("ours", *others), both),
        }

    windows = [
        {"length": length, "window/prefix": pair, "forward": row(1.0), "backward": row(3.0)}
        for length in (1024, 4096)
        for pair in ("64/32", "256/128")
    ]
    return {
        "settings": [
            setting("full causal", 1024, 128, "SDPA, causal softmax"),
            setting("full causal", 4096, 128),
            setting("prefix 256/128", 4096, 128),
            setting("prefix 512/256", 8192, 64),
        ],
        "window against full causal": windows,
        "candidates": {"users": 8, "candidates": 1024, "history": 8192, "microseconds": 34.6},
        "environment": {"accelerator": "a GPU"},
    }


def test_the_picture_is_written(tmp_path: Path) -> None:
    draw_attention(tmp_path / "picture.png", result())
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_rows_of_the_table() -> None:
    rows = ROWS["attention on a GPU"](result())
    assert rows[0][:3] == (
        "attention, full causal, 1024 tokens, dim 128, forward / backward",
        "200 / 50 TFLOP/s",
        "SDPA, causal softmax: 200 / 50",
    )
    assert rows[-1][:3] == ("8 users × 1,024 candidates on 8,192 events, one layer", "35 µs", "")
    assert [row.main for row in rows].count(True) == 1
