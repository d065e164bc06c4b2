"""Every tiling of the product kernels gives the same result, and what ships compiles for Hopper without spilling."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import Tensor

from longview.ops.hstu_layer.tiling import IN_PROJECTION, PART, SHARED, Staying, ring_of, stages_for, staying
from tests.ops.hstu_layer.helpers import DEVICE
from tests.ops.offline import compiled

MODULES = (
    "triton_norm",
    "triton_parameters",
    "triton_project",
    "triton_output",
    "triton_backward",
    "gluon_project",
    "gluon_output",
)
ON_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
needs_hopper = pytest.mark.skipif(not ON_HOPPER, reason="needs a Hopper GPU: Gluon has no interpreter")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("resident", [0, 1])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("activated", [40, 88])
@pytest.mark.parametrize("product", [torch.float32, torch.float16])
def test_projection(product: torch.dtype, activated: int, parts: int, resident: int) -> None:
    from longview.ops.hstu_layer.tiling import Tiling
    from longview.ops.hstu_layer.triton_project import fold, project

    z, weight, bias = normal(70, 64), normal(88, 64, seed=1), normal(88, seed=2)
    gamma, beta = normal(64, seed=3), normal(64, seed=4)
    tiling = Tiling(32, 32, 32, 4, 2, group=2, resident=resident, parts=parts)
    folded = fold(weight, bias, gamma, beta, product)
    found = project(z, folded, activated, 1e-6, save_pre=True, save_normed=True, tiling=tiling)
    x = torch.nn.functional.layer_norm(z.double(), (64,), gamma.double(), beta.double(), 1e-6)
    pre = x @ weight.double().T + bias.double()
    expected = torch.cat([torch.nn.functional.silu(pre[:, :activated]), pre[:, activated:]], 1)
    near = {"rtol": 1e-5, "atol": 1e-5} if product == torch.float32 else {"rtol": 1e-2, "atol": 4e-2}
    assert found.uvqk.dtype == product
    torch.testing.assert_close(found.uvqk.double(), expected, **near)
    torch.testing.assert_close(found.pre.double(), pre[:, :activated], **near)
    torch.testing.assert_close(found.normed.double(), torch.nn.functional.layer_norm(z.double(), (64,)), **near)
    torch.testing.assert_close(found.statistics[0].double(), z.double().mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("resident", [0, 1])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("product", [torch.float32, torch.float16])
def test_output(product: torch.dtype, parts: int, resident: int) -> None:
    from longview.ops.hstu_layer.tiling import Tiling
    from longview.ops.hstu_layer.triton_output import output

    z, gated = normal(70, 40), normal(70, 64, seed=1).to(product)
    weight, bias = normal(40, 64, seed=3).to(product), normal(40, seed=4)
    found = output(z, gated, weight, bias, Tiling(32, 32, 32, 4, 2, resident=resident, parts=parts))
    assert found.dtype == z.dtype
    expected = z.double() + gated.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


class TestRowsThatStay:
    @needs_hopper
    @pytest.mark.parametrize("kind", ["measured", "given", "normed"])
    @pytest.mark.parametrize("parts", [1, 2])
    @pytest.mark.parametrize("activated", [512, 264])
    @pytest.mark.parametrize("product", [torch.bfloat16, torch.float16])
    def test_projection(self, product: torch.dtype, activated: int, parts: int, kind: str) -> None:
        from longview.ops.hstu_layer.gluon_project import project_staying
        from longview.ops.hstu_layer.triton_norm import normalise
        from longview.ops.hstu_layer.triton_project import fold

        z = normal(300, 256).to(product) + 3
        weight, bias, gamma, beta = (normal(*n, seed=i) for i, n in enumerate(((512, 256), (512,), (256,), (256,)), 1))
        folded = fold(weight / 16, bias, gamma, beta, product)
        statistics, normed = normalise(z, 1e-6, None, product)
        expected_statistics = [x.clone() for x in statistics]
        if kind == "measured":
            for x in statistics:
                x.fill_(float("nan"))
        out, pre = z.new_empty(300, 512), z.new_empty(300, activated)
        launch = Staying(stages_for(256, **IN_PROJECTION), parts=parts, **IN_PROJECTION)
        x = normed if kind == "normed" else z
        project_staying(
            x, folded.weight, out, pre, statistics, folded.row_sum, folded.shift, 1e-6, launch,
            activated=activated, normed=kind == "normed", measure=kind == "measured",
        )  # fmt: skip
        exact = torch.nn.functional.layer_norm(z.double(), (256,), gamma.double(), beta.double(), 1e-6)
        exact = exact @ (weight.double() / 16).T + bias.double()
        expected = torch.cat([torch.nn.functional.silu(exact[:, :activated]), exact[:, activated:]], 1)
        for found, wanted in ((out, expected), (pre, exact[:, :activated])):
            assert (found.double() - wanted).norm() < 8e-3 * wanted.norm()
        for found, wanted in zip(statistics, expected_statistics, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("inner", [256, 384, 512])
    def test_stages_fit_beside_rows_and_tiles(self, inner: int) -> None:
        stages = stages_for(inner, **IN_PROJECTION)
        assert (inner // IN_PROJECTION["depth"]) % stages == 0
        assert 2 * 128 * (inner + 128 * IN_PROJECTION["leaving"] + stages * IN_PROJECTION["depth"]) <= SHARED

    def test_other_devices_and_dtypes_have_the_plain_kernels(self) -> None:
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            assert staying(torch.float32, 10**6, 512, 2048, torch.device(device), **IN_PROJECTION) is None
        assert staying(torch.bfloat16, 10**6, 512, 2048, torch.device("cpu"), **IN_PROJECTION) is None


class TestWeightsThatStay:
    @needs_hopper
    @pytest.mark.parametrize("tokens", [1, 64, 300, 64 * 70 + 1, 40000])
    @pytest.mark.parametrize(("inner", "width"), [(256, 256), (256, 512), (384, 768), (512, 512)])
    @pytest.mark.parametrize("product", [torch.bfloat16, torch.float16])
    def test_output(self, product: torch.dtype, inner: int, width: int, tokens: int) -> None:
        from longview.ops.hstu_layer.gluon_output import output_held

        z, gated = normal(tokens, width).to(product), normal(tokens, inner, seed=1).to(product)
        weight, bias = (normal(width, inner, seed=3) / 16).to(product), normal(width, seed=4)
        results = [torch.full_like(z, float("nan")) for _ in range(10)]
        for out in results:
            output_held(z, gated, weight, bias, out)
        expected = z.double() + gated.double() @ weight.double().T + bias.double()
        assert (results[0].double() - expected).norm() < 4e-3 * expected.norm()
        assert all(torch.equal(out, results[0]) for out in results)

    @needs_hopper
    @pytest.mark.parametrize("rate", [0.0, 0.2])
    @pytest.mark.parametrize("width", [256, 512])
    def test_the_product_may_begin_before_the_gate_ends(self, width: int, rate: float) -> None:
        from longview.ops.hstu_layer.triton_output import Gate, gate_forward, gated_output, holds, output

        tokens = 70001
        z, a, u = (normal(tokens, width, seed=i).bfloat16() for i in range(3))
        weight = (normal(width, width, seed=3) / 16).bfloat16()
        scale, shift, bias = (normal(width, seed=i) for i in (4, 5, 6))
        seed = torch.tensor([1 << 61], device=z.device) if rate else None
        gate = Gate(scale, shift, 1, 1e-6, rate, seed)
        assert holds(z, a)
        gated, statistics = gate_forward(a, u, gate)
        expected = output(z, gated, weight, bias)
        for _ in range(10):
            # Memory that was just given back is what the next call gets: what has not arrived would be found.
            torch.full_like(z, float("nan")), torch.full_like(a, float("nan"))
            found, found_gated, found_statistics = gated_output(z, a, u, gate, weight, bias)
            assert torch.equal(found, expected)
            assert torch.equal(found_gated, gated)
            assert all(torch.equal(x, y) for x, y in zip(found_statistics, statistics, strict=True))

    @pytest.mark.parametrize("inner", [256, 384, 512])
    def test_the_ring_has_whole_tiles_and_fits_beside_weights_and_a_tile(self, inner: int) -> None:
        stages, chunk = ring_of(inner), 2 * PART * PART
        assert stages > 0
        assert stages % (inner // PART) == 0
        assert stages * chunk + 2 * 128 * inner + 4 * chunk <= SHARED


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or importlib.util.find_spec("triton") is None, reason="needs triton"
)
@pytest.mark.parametrize("module", MODULES)
def test_what_ships_compiles_without_spilling(module: str) -> None:
    rows = compiled(f"longview.ops.hstu_layer.{module}")
    for row in rows:
        assert row["stack"] == 0, row
        if row["name"].startswith(("project", "output")):
            assert row["wgmma"] > 0, row
