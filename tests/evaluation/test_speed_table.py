"""The speed table says what the benchmark files say."""

from __future__ import annotations

import json
from pathlib import Path

from longview.evaluation.speed_table import speed_table

ENVIRONMENT = {"processor": "CPU", "threads": 2, "accelerator": None, "python": "3.11", "torch": "2.13"}
TRAIN = {
    "benchmark": "train",
    "seconds_per_epoch": 12.34,
    "recommend_seconds": 1.5,
    "peak_memory_bytes": 2**30,
    "data": {"name": "log", "users": 6040},
    "config": {
        "model": {"width": 64, "layers": 2, "max_length": 200},
        "loss": {"kind": "sampled", "num_negatives": 256},
        "batches": {"batch_size": 128, "token_budget": None},
    },
    "peer": {
        "model": "Other",
        "versions": {"rectools": "0.19"},
        "seconds_per_epoch": 200.0,
        "seconds_to_recommend": 6.0,
    },
    "environment": ENVIRONMENT,
    "command": "longview bench train",
}


def test_a_row_for_each_figure(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps(TRAIN))
    (tmp_path / "study.json").write_text(json.dumps({"seeds": []}))
    table = speed_table(tmp_path)
    assert "| **12.3 s** | Other 0.19: 200.0 s |" in table
    assert "top 10 for all 6,040 users | **1.50 s** | Other 0.19: 6.0 s |" in table
    assert "**1.00 GiB**" in table
    assert "`longview bench train`" in table
    assert "CPU, 2 threads, Python 3.11, torch 2.13" in table
    assert "study.json" not in table


def test_no_files_no_table(tmp_path: Path) -> None:
    assert "No measurements" in speed_table(tmp_path)


def test_a_table_for_each_machine(tmp_path: Path) -> None:
    gpu = {**ENVIRONMENT, "accelerator": "a GPU", "triton": "3.6"}
    times = {"ours": {"median_ms": 1.234}, "torch, compiled": {"median_ms": 2.0}}
    layer = {"width": 512, "tokens": 131072, "layer_forward": times, "layer_forward_and_backward": times}
    result = {"benchmark": "fused HSTU layer on a GPU", "shapes": [layer], "environment": gpu, "command": "layer"}
    (tmp_path / "layer.json").write_text(json.dumps(result))
    (tmp_path / "train.json").write_text(json.dumps(TRAIN))
    table = speed_table(tmp_path)
    assert "**a GPU, Python 3.11, torch 2.13, Triton 3.6**" in table
    assert "| HSTU layer of width 512, 131,072 events, forward | **1.23 ms** | torch, compiled: 2.00 ms |" in table
    assert table.index("Made by `layer`") < table.index("**CPU, 2 threads")
