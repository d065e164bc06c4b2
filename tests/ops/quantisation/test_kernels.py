"""The kernels against the definition: in Triton's interpreter here, compiled where there is a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longview.ops.dropout.counter import dropout_mask
from longview.ops.hstu_layer.tiling import Tiling
from longview.ops.quantisation import (
    emulation,
    fp8_linear,
    gate_quantise,
    normalise_quantise,
    quantise_rows,
    reference,
)
from tests.ops.offline import compiled
from tests.ops.quantisation.helpers import normal, spread

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    values, scale = found[0].float().cpu(), found[1].cpu()
    torch.testing.assert_close(scale, expected[1].float(), rtol=1e-5, atol=0)
    off = values != expected[0].float()
    assert float(off.float().mean()) < 0.005, "more than the order of sums explains"
    assert bool(((values - expected[0].float()).abs() <= values.abs() / 7 + 2.0**-9).all())


class TestRows:
    def test_as_they_are_bit_for_bit(self) -> None:
        from longview.ops.quantisation import triton_rows

        for rows, width in ((1, 16), (37, 48), (5, 129)):
            x = spread(rows, width)
            x[0] = 0
            values, scale = triton_rows.quantise(x.to(DEVICE))
            expected, expected_scale = emulation.quantise(x)
            assert torch.equal(values.cpu().view(torch.uint8), expected.view(torch.uint8))
            assert torch.equal(scale.cpu(), expected_scale)

    def test_norm(self) -> None:
        from longview.ops.quantisation import triton_rows

        z, gamma, beta = normal(37, 48) + 2, normal(48, seed=1), normal(48, seed=2)
        found = triton_rows.normalise_quantise(*(x.to(DEVICE) for x in (z, gamma, beta)), 1e-6)
        assert_close(found[:2], reference.normalise_quantise(z, gamma, beta, 1e-6))
        torch.testing.assert_close(found[2][0].cpu(), z.mean(1))

    @pytest.mark.parametrize("groups", [1, 3])
    @pytest.mark.parametrize("rate", [0.0, 0.4])
    def test_gate(self, rate: float, groups: int) -> None:
        from longview.ops.quantisation import triton_rows

        a, u = normal(21, 48), normal(21, 100, seed=3)
        gamma, beta = normal(48 // groups, seed=1), normal(48 // groups, seed=2)
        on_device = [x.to(DEVICE) for x in (a, u, gamma, beta)]
        on_device[1] = on_device[1][:, :48]
        found = triton_rows.gate_quantise(*on_device, groups, 1e-6, rate, torch.tensor([99]).to(DEVICE))
        mask = dropout_mask(99, 21, 48, rate).float()
        assert_close(found[:2], reference.gate_quantise(a, u[:, :48], gamma, beta, groups, 1e-6, mask))

    @needs_hopper
    def test_a_row_that_is_not_finite_makes_a_row_of_nan(self) -> None:
        x = normal(5, 64).cuda()
        x[1, 3], x[2, 7] = torch.nan, torch.inf
        w = quantise_rows(normal(32, 64).cuda())
        found = fp8_linear(*quantise_rows(x), *w)
        assert found.isnan().all(1).tolist() == [False, True, True, False, False]
        assert bool(found[[0, 3, 4]].isfinite().all())


class TestProduct:
    @pytest.mark.parametrize("activated", [0, 16, 48])
    @pytest.mark.parametrize("with_residual", [False, True])
    def test_float32_results(self, with_residual: bool, activated: int) -> None:
        from longview.ops.quantisation import triton_product

        x, w = emulation.quantise(spread(40, 64)), emulation.quantise(normal(48, 64, seed=4))
        bias = normal(48, seed=5)
        residual = normal(40, 48, seed=6) if with_residual else None
        given = [None if t is None else t.to(DEVICE) for t in (*x, *w, bias, residual)]
        found = triton_product.product(*given, activated, torch.float32)  # type: ignore[arg-type]
        expected = emulation.product(*x, *w, bias, residual, activated, torch.float32)
        torch.testing.assert_close(found.cpu(), expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))

    @pytest.mark.parametrize("parts", [1, 2, 4])
    def test_tiles_that_the_result_does_not_fill(self, parts: int) -> None:
        from longview.ops.quantisation import triton_product

        x, w = emulation.quantise(normal(70, 48)), emulation.quantise(normal(80, 48, seed=4))
        plan = triton_product.Plan(Tiling(32, 64, 32, 4, 2, group=2, resident=1, parts=parts), "late")
        found = triton_product.product(*(t.to(DEVICE) for t in (*x, *w)), None, None, 0, torch.float32, plan)
        torch.testing.assert_close(
            found.cpu(), emulation.product(*x, *w, None, None, 0, torch.float32), rtol=2e-3, atol=2e-2
        )

    @needs_hopper
    @pytest.mark.parametrize("shape", [(300, 1024, 1024), (2000, 2048, 1040), (129, 512, 4096)])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_shapes_of_layers(self, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
        rows, inner, columns = shape
        x, w = quantise_rows(normal(rows, inner).cuda()), quantise_rows(normal(columns, inner, seed=4).cuda())
        bias, residual = normal(columns).cuda(), normal(rows, columns).cuda().to(dtype)
        for given, activated in ((residual, 0), (None, columns)):
            found = fp8_linear(*x, *w, bias, given, activated, dtype)
            exact = reference.fp8_linear(
                *(t.double() for t in (*x, *w)), bias.double(), None if given is None else given.double(), activated
            )
            assert float((found.double() - exact).norm() / exact.norm()) < 4e-3

    @needs_hopper
    def test_the_whole_path_of_a_layer(self) -> None:
        z, ones = normal(1000, 256).cuda().bfloat16(), torch.ones(256).cuda()
        w = quantise_rows(normal(1024, 256, seed=1).cuda() / 16)
        uvqk = fp8_linear(*normalise_quantise(z, ones, ones)[:2], *w, activated=1024)
        gated = gate_quantise(
            uvqk[:, 256:512].contiguous(), uvqk[:, :256], ones, ones, rate=0.2, seed=torch.tensor([3]).cuda()
        )
        out = fp8_linear(*gated[:2], *quantise_rows(normal(256, 256, seed=2).cuda() / 16), residual=z)
        assert out.dtype == torch.bfloat16
        assert bool(out.isfinite().all())


class TestCompiledForHopper:
    @pytest.mark.parametrize("module", ["triton_rows", "triton_product", "triton_hopper"])
    def test_shipped_configurations_fit_and_spill_nothing(self, module: str) -> None:
        for row in compiled(f"longview.ops.quantisation.{module}"):
            assert row["stack"] == 0, row
            if module in ("triton_product", "triton_hopper"):
                assert row["wgmma"] > 0, row
