"""The benchmark of quantisation: what it refuses here, and on a GPU what it reports."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from longview.bench import quantisation, quantisation_layers, quantisation_tables
from longview.bench.quantisation import FP8, LIBRARY, OURS, bench_quantisation
from longview.bench.quantisation_layers import bench_layers
from longview.bench.timing import Timing
from longview.errors import InputError
from tests.bench.written import read_written
from tests.ops.offline import compiled

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bench quantisation times GPU kernels, and this machine has no CUDA GPU"):
        bench_quantisation(tmp_path / "result.json")
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"no part 'layer' \(did you mean 'layers'\?\): products, where_it_pays"):
        bench_quantisation(only=["layer"])


def test_ratios_are_of_medians_of_bfloat16() -> None:
    timings = {OURS: Timing.of([0.004]), LIBRARY: Timing.of([0.003]), FP8: Timing.of([0.002])}
    found = quantisation._beside(timings, 1e9)
    assert found[FP8][f"times_faster_than {OURS}"] == 2
    assert found[FP8][f"times_faster_than {LIBRARY}"] == 1.5
    assert found[FP8]["tflops"] == 0.5
    plain = quantisation_tables._beside_plain({"bfloat16": Timing.of([0.003]), "quantised": Timing.of([0.001])})
    assert plain["quantised"] == {"median_us": 1000, "p10_us": 1000, "p90_us": 1000, "times_faster": 3}


def test_tables_stand_beside_torch_a_kernel_of_the_same_form_and_a_plain_copy() -> None:
    timings = {"bfloat16": [0.004], "bfloat16, Triton": [0.002], "quantised": [0.001]}
    moved = {"bfloat16": 8_000_000, "bfloat16, Triton": 8_000_000, "quantised": 3_000_000}
    found = quantisation_tables._beside_plain({k: Timing.of(v) for k, v in timings.items()}, moved, speed=6e9)
    assert [row["times_faster"] for row in found.values()] == [1, 2, 4]
    assert [row["times_faster_than_triton"] for row in found.values()] == [0.5, 1, 2]
    assert found["quantised"]["bytes"] == 3_000_000
    assert found["quantised"]["of_copy_speed"] == 0.5


def test_the_quoted_settings_are_those_of_the_claims() -> None:
    assert min(quantisation.WIDTHS) == 1024
    assert quantisation.ROWS == 131072
    assert {width: kinds[0] for width, kinds in quantisation_tables.KINDS.items()} == {128: (4, 64), 512: (4, 64)}


@needs_hopper
def test_a_measurement_is_right_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "WIDTHS", (256,))
    monkeypatch.setattr(quantisation, "MORE_WIDTHS", (256,))
    monkeypatch.setattr(quantisation, "FEWER_ROWS", (1024,))
    monkeypatch.setattr(quantisation_tables, "HOST_ROWS", 10_000)
    monkeypatch.setattr(quantisation_tables, "BAGS", ((100, 20),))
    monkeypatch.setattr(quantisation, "bench_layers", partial(bench_layers, widths=(256,), tokens=(4096,)))
    result = bench_quantisation(tmp_path / "result.json", rounds=2, rows=4096, table_rows=100_000)
    assert read_written(tmp_path / "result.json") == result
    for product in result["products"]:
        accumulating, everything = product["relative_error"].values()
        assert accumulating < 2e-3
        assert everything < 0.05
    (layer,) = result["layers"]
    assert layer["relative_error"]["bfloat16"] < layer["relative_error"]["FP8"] < 0.1
    assert layer["forward"].keys() == layer["forward_and_backward"].keys() == quantisation_layers.FORMS.keys()
    tables = [table for table in result["tables"] if table["width"] == 512]
    errors = {(table["bits"], table["group"]): table["relative_error"] for table in tables}
    assert errors[8, 64] < 0.02 < errors[4, 32] < errors[4, 64] < 0.15
    assert max(table["times_smaller"] for table in result["tables"]) > 3.5
    for table in result["tables"]:
        assert {(row["kind"], row["how"]) for row in table["pooled"]} == {
            (kind, how) for kind in ("uniform", "zipf") for how in ("graph", "launches")
        }


@needs_gpu
def test_what_lookups_and_bags_are_compared_with_is_right() -> None:
    from longview.bench.quantisation_peer import bags, gathered

    for width in (128, 512):
        weight = torch.randn(50, width, device="cuda").bfloat16()
        ids, offsets = torch.randint(50, (90,), device="cuda"), torch.tensor([0, 30, 30, 90], device="cuda")
        exact = torch.nn.functional.embedding_bag(ids, weight.float(), offsets, mode="sum", include_last_offset=True)
        torch.testing.assert_close(bags(weight, ids, offsets), exact.bfloat16())
        assert torch.equal(gathered(weight, ids), weight[ids])


def test_compared_kernels_compile_for_hopper_and_spill_nothing() -> None:
    for row in compiled("longview.bench.quantisation_peer"):
        assert row["stack"] == 0, row
