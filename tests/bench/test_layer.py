"""The benchmark of the fused layer: what it refuses here, and on a GPU what it reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longview.bench.layer import BARE, SHAPES, Shape, _beside_bare, _beside_ours, bench_layer
from longview.bench.timing import Timing
from longview.errors import InputError
from tests.bench.written import read_written

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(InputError, match="no CUDA GPU"):
        bench_layer()


def test_the_quoted_shapes_have_heads_of_128_columns_and_whole_sequences() -> None:
    assert [(shape.width, shape.width // shape.heads) for shape in SHAPES] == [(512, 128), (1024, 128)]
    assert all(shape.tokens % 4096 == 0 for shape in SHAPES)


def test_shares_are_of_the_bare_product_and_ratios_of_ours() -> None:
    timings = {BARE: Timing.of([0.001]), "ours": Timing.of([0.00125])}
    assert _beside_bare(timings, 1e9)["ours"]["of_bare_product"] == 0.8
    assert _beside_bare(timings, 1e9)[BARE]["tflops"] == 1.0
    assert _beside_ours(timings)[BARE]["times_slower_than_ours"] == 0.8


@needs_gpu
def test_a_measurement_is_right_and_whole(tmp_path: Path) -> None:
    result = bench_layer(tmp_path / "layer.json", rounds=2, shapes=(Shape(256, 4, 8192),))
    assert read_written(tmp_path / "layer.json") == result
    (shape,) = result["shapes"]
    assert shape["relative_error"]["ours"] < max(8e-3, 1.5 * shape["relative_error"]["torch, eager"])
    for part in ("projection", "output", "layer_forward", "layer_forward_and_backward"):
        for row in shape[part].values():
            assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
    kept = {row["recomputed"]: row["kept_for_backward_mib"] for row in shape["recompute"]}
    assert len(kept) == 8
    assert kept["normed, uvqk, gated"] == min(kept.values()) < kept["nothing"] == max(kept.values())
