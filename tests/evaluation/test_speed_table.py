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
    beside = {"ours": {"median_ms": 0.4804}, "bare matrix product (cuBLAS)": {"median_ms": 0.4054}}
    layer = {"width": 512, "tokens": 131072, "layer_forward": times, "layer_forward_and_backward": times}
    layer |= {"projection": beside, "output": beside}
    result = {"benchmark": "fused HSTU layer on a GPU", "shapes": [layer], "environment": gpu, "command": "layer"}
    (tmp_path / "layer.json").write_text(json.dumps(result))
    (tmp_path / "train.json").write_text(json.dumps(TRAIN))
    table = speed_table(tmp_path)
    assert "**a GPU, Python 3.11, torch 2.13, Triton 3.6**" in table
    assert "| HSTU layer of width 512, 131,072 events, forward | **1.23 ms** | torch, compiled: 2.00 ms |" in table
    assert "norm, projection and SiLU | **0.480 ms** | bare matrix product (cuBLAS): 0.405 ms |" in table
    assert table.index("Made by `layer`") < table.index("**CPU, 2 threads")


def test_quantised_products_and_tables(tmp_path: Path) -> None:
    alone = {
        "FP8, ours": {"median_ms": 0.25, "times_faster_than bfloat16, ours": 2.0},
        "bfloat16, ours": {"median_ms": 0.5, "times_faster_than bfloat16, ours": 1.0},
    }
    products = [{"product": kind, "rows": 4096, "inner": 1024, "alone": alone} for kind in ("output", "projection")]
    found = {"quantised": {"median_us": 100.0, "times_faster": 3.0}, "bfloat16": {"median_us": 300.0}}
    lookups = [
        {"ids": 1000, "kind": kind, "how": how, **found}
        for kind in ("uniform", "zipf")
        for how in ("graph", "launches")
    ]
    bags = {"bags": 4096, "ids_a_bag": 100, "kind": "uniform", **found, "bfloat16, Triton": {"median_us": 310.0}}
    table = {"bits": 4, "group": 64, "width": 512, "times_smaller": 3.556, "lookups": lookups, "pooled": [bags]}
    result = {"benchmark": "quantisation on a GPU", "products": products, "environment": ENVIRONMENT, "command": "q"}
    result["tables"] = [{**table, "transfer": {"ids": 65536, **found}}]
    (tmp_path / "quantisation.json").write_text(json.dumps(result))
    made = speed_table(tmp_path)
    assert made.count("FP8 product and residual, 4,096 rows, width 1024 | **0.250 ms, 2.00 ×**") == 1
    assert "INT4 table (groups of 64), rows of 512: size | **3.56 × smaller than bfloat16** |" in made
    assert "65,536 rows copied from the host | **100 µs, 3.00 ×** | bfloat16: 300 µs |" in made
    assert made.count("1,000 lookups") == 1
    summed = "sums of 4,096 bags of 100 | **100 µs, 3.00 ×** | bfloat16: 300 µs; bfloat16, Triton: 310 µs |"
    assert summed in made


def test_load_spread_at_one_batch_size(tmp_path: Path) -> None:
    spread = {name: {"max_over_mean": value} for name, value in (("full", 0.2), ("plain", 0.157), ("balanced", 0.029))}
    row = {"ranks": 8, "histories": "log", "max_length": 16384, "gamma": 1.0, "speed_up_of_balance": 1.127, **spread}
    rows = [{**row, "batch_size_a_rank": size} for size in (16, 32)]
    result = {"benchmark": "balance", "simulated": rows, "environment": ENVIRONMENT, "command": "balance"}
    (tmp_path / "balance.json").write_text(json.dumps(result))
    made = speed_table(tmp_path)
    assert made.count("load spread") == 1
    assert "| **2.9%, +12.7% throughput** | plain: 15.7%; whole histories: 20.0% |" in made


def test_losses_over_a_memory_and_what_a_step_costs(tmp_path: Path) -> None:
    row = {"median_ms": 13.975, "extra_mib": 8.4}
    chunked = {"median_ms": 35.658, "extra_mib": 61.8}
    providers = {"contrastive": row, "chunked torch": chunked, "compiled contrastive": row, "compiled circle": row}
    setting = {"batch": 64, "rows": 59551, "width": 128, "dtype": "float32", "providers": providers}
    losses = {"benchmark": "losses over batch × memory, cpu", "settings": [setting], "environment": ENVIRONMENT}
    (tmp_path / "losses.json").write_text(json.dumps({**losses, "command": "losses"}))
    times = {
        name: {"median_ms": value}
        for name, value in (("no memory", 44.7), ("XBM", 51.9), ("XBN", 54.1), ("AXBN", 54.7))
    }
    step = {"batch": 64, "memory": 10000, "width": 128, "providers": times}
    steps = {"benchmark": "training step with an embedding memory on a CPU", "settings": [step]}
    (tmp_path / "step.json").write_text(json.dumps({**steps, "environment": ENVIRONMENT, "command": "step"}))
    made = speed_table(tmp_path)
    assert "float32, forward and backward | **13.97 ms, 8 MiB** | chunked torch: 35.66 ms, 62 MiB; compiled c" in made
    assert "compiled contrastive: 13.97 ms, 8 MiB |" in made
    assert "compiled circle" not in made
    assert "memory 10,000: AXBN | **54.7 ms** | XBM: 51.9 ms; XBN: 54.1 ms; no memory: 44.7 ms |" in made


def test_the_readme_has_the_rows_that_stand_for_the_rest(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps(TRAIN))
    (tmp_path / "alone.json").write_text(json.dumps({k: v for k, v in TRAIN.items() if k != "peer"}))
    table = speed_table(tmp_path, main=True)
    assert "12.3 s" in table
    assert "GiB" not in table
    assert "alone.json" not in table
    assert "Made by" not in table
