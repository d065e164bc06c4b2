"""FP8 on a CPU: the numbers of the definition, gradients of the plain product, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from longview.errors import InputError
from longview.ops.dropout.counter import dropout_mask
from longview.ops.quantisation import (
    fp8_linear,
    gate_quantise,
    normalise_quantise,
    quantise_rows,
    quantised_linear,
    reference,
    why_no_fp8,
    why_not_fp8,
)
from tests.ops.quantisation.helpers import normal, spread


class TestRounding:
    def test_every_e4m3_number_is_its_own_rounding(self) -> None:
        every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        every = every[every.isfinite()]
        assert torch.equal(reference.round_e4m3(every), every)
        assert len(every) == 254

    def test_ties_go_to_even_and_overflow_saturates(self) -> None:
        given = torch.tensor([17.0, 19.0, 2.0**-10, 3 * 2.0**-10, 449.0, 1e9, -1e30, torch.inf, torch.nan])
        expected = [16.0, 20.0, 0.0, 2.0**-8, 448.0, 448.0, -448.0, 448.0]
        assert reference.round_e4m3(given)[:-1].tolist() == expected
        assert reference.round_e4m3(given)[-1].isnan()

    def test_agrees_with_torch(self) -> None:
        x = spread(50, 64)
        assert torch.equal(reference.round_e4m3(x), x.clamp(-448, 448).to(torch.float8_e4m3fn).float())


class TestRows:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_the_definition_bit_for_bit(self, dtype: torch.dtype) -> None:
        x = spread(37, 50).clamp(-6e4, 6e4).to(dtype)
        values, scale = quantise_rows(x)
        expected, expected_scale = reference.quantise_rows(x.float())
        assert torch.equal(values.float(), expected)
        assert torch.equal(scale, expected_scale)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 99), st.floats(-25, 25))
    def test_a_value_is_off_by_a_sixteenth_of_itself_or_half_the_least_spacing(
        self, rows: int, width: int, seed: int, size: float
    ) -> None:
        x = normal(rows, width, seed=seed) * 2.0**size
        values, scale = quantise_rows(x)
        error = (values.double() * scale.double()[:, None] - x.double()).abs()
        bound = torch.maximum(x.double().abs() / 16, scale.double()[:, None] * 2.0**-10)
        assert bool((error <= bound * (1 + 1e-6)).all())
        assert bool((values.float().abs().amax(1) == 448).all())

    def test_zero_rows_and_tiny_rows(self) -> None:
        x = torch.zeros(2, 16)
        x[1] = 1e-38
        values, scale = quantise_rows(x)
        assert not values[0].float().any()
        assert bool(scale.isfinite().all())
        assert bool(((values.float() * scale[:, None]) <= 1e-30).all())

    def test_no_rows(self) -> None:
        values, scale = quantise_rows(torch.zeros(0, 16))
        assert (values.shape, values.dtype, scale.shape) == ((0, 16), torch.float8_e4m3fn, (0,))

    @pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
    def test_what_is_not_finite_is_refused_with_its_row(self, wrong: float) -> None:
        x = normal(5, 16)
        x[3, 2] = wrong
        with pytest.raises(InputError, match="row 3 of 5 has an infinity or a NaN"):
            quantise_rows(x)

    @pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 4).double()])
    def test_other_shapes_and_dtypes_are_refused(self, x: Tensor) -> None:
        with pytest.raises(InputError, match="expected two dimensions"):
            quantise_rows(x)


class TestFusedPasses:
    def test_norm(self) -> None:
        z, gamma, beta = normal(21, 48) + 3, normal(48, seed=1), normal(48, seed=2)
        found = normalise_quantise(z, gamma, beta)
        _same_numbers(found[:2], reference.normalise_quantise(z.double(), gamma.double(), beta.double(), 1e-6))
        torch.testing.assert_close(found.mean, z.mean(1))
        torch.testing.assert_close(found.rstd, 1 / (z.var(1, correction=0) + 1e-6).sqrt())

    @pytest.mark.parametrize("groups", [1, 3])
    @pytest.mark.parametrize("rate", [0.0, 0.3])
    def test_gate(self, rate: float, groups: int) -> None:
        a, wider = normal(21, 48), normal(21, 100, seed=3)
        gamma, beta = normal(48 // groups, seed=1), normal(48 // groups, seed=2)
        u = wider[:, :48]
        found = gate_quantise(a, u, gamma, beta, groups, rate=rate, seed=torch.tensor([77]))
        mask = dropout_mask(77, 21, 48, rate)
        wide = (x.double() for x in (a, u, gamma, beta))
        _same_numbers(found[:2], reference.gate_quantise(*wide, groups, 1e-6, mask))
        torch.testing.assert_close(found.mean, a.reshape(21 * groups, -1).mean(1))

    def test_what_does_not_fit_is_refused(self) -> None:
        a, ones = normal(3, 48), torch.ones(48)
        with pytest.raises(InputError, match=r"gamma has shape \(48,\); expected \(16,\)"):
            gate_quantise(a, a, ones, ones, groups=3)
        with pytest.raises(InputError, match="groups is 5; expected a divisor of 48"):
            gate_quantise(a, a, ones, ones, groups=5)
        with pytest.raises(InputError, match="u has shape"):
            gate_quantise(a, a[:, :32], ones, ones)
        with pytest.raises(InputError, match=r"rate is 1\.0"):
            gate_quantise(a, a, ones, ones, rate=1.0)
        with pytest.raises(InputError, match=r"a rate of 0\.5 needs a seed"):
            gate_quantise(a, a, ones, ones, rate=0.5)
        with pytest.raises(InputError, match=r"beta has shape \(3,\)"):
            normalise_quantise(a, ones, torch.ones(3))


class TestProduct:
    @pytest.mark.parametrize("activated", [0, 8, 24])
    @pytest.mark.parametrize("with_residual", [False, True])
    def test_the_definition(self, with_residual: bool, activated: int) -> None:
        x, w = quantise_rows(spread(19, 40)), quantise_rows(normal(24, 40, seed=5))
        bias, residual = normal(24, seed=6), normal(19, 24, seed=7) if with_residual else None
        found = fp8_linear(*x, *w, bias, residual, activated, torch.float32)
        wide = (t.double() for t in (*x, *w, bias))
        expected = reference.fp8_linear(*wide, None if residual is None else residual.double(), activated)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)

    def test_no_rows_and_no_bias(self) -> None:
        x, w = quantise_rows(torch.zeros(0, 40)), quantise_rows(normal(24, 40))
        assert fp8_linear(*x, *w).shape == (0, 24)
        assert fp8_linear(*quantise_rows(normal(2, 40)), *w).dtype == torch.bfloat16

    def test_what_does_not_fit_is_refused(self) -> None:
        x, w = quantise_rows(normal(3, 40)), quantise_rows(normal(24, 40))
        with pytest.raises(InputError, match=r"x_q is torch\.float32"):
            fp8_linear(normal(3, 40), x.scale, *w)
        with pytest.raises(InputError, match="a scale for each row of w_q"):
            fp8_linear(*x, w.values, x.scale)
        with pytest.raises(InputError, match="x_q has 32 columns and w_q 40"):
            fp8_linear(*quantise_rows(normal(3, 32)), *w)
        with pytest.raises(InputError, match="activated is 25; expected 0 to 24"):
            fp8_linear(*x, *w, activated=25)
        with pytest.raises(InputError, match=r"bias has shape \(3,\)"):
            fp8_linear(*x, *w, bias=torch.zeros(3))
        with pytest.raises(InputError, match=r"residual is torch\.float32"):
            fp8_linear(*x, *w, residual=torch.zeros(3, 24))
        with pytest.raises(InputError, match=r"out_dtype is torch\.int8"):
            fp8_linear(*x, *w, out_dtype=torch.int8)


class TestGradient:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_it_is_that_of_the_plain_product(self, dtype: torch.dtype) -> None:
        made = normal(19, 40), normal(24, 40, seed=5), normal(24, seed=6), normal(19, 24, seed=7)
        d_out = normal(19, 24, seed=8).to(dtype)

        def gradients(form: Callable[..., Tensor]) -> tuple[Tensor, ...]:
            leaves = [x.to(dtype).requires_grad_() for x in made]
            return torch.autograd.grad(form(*leaves), leaves, d_out)

        plain = gradients(lambda x, w, b, z: F.linear(x, w, b) + z)
        for found, expected in zip(gradients(quantised_linear), plain, strict=True):
            torch.testing.assert_close(found, expected)

    def test_forward_is_the_quantised_product_and_close_to_the_plain_one(self) -> None:
        x, w, bias = normal(64, 256), normal(32, 256, seed=1) / 16, normal(32, seed=2)
        found = quantised_linear(x, w, bias)
        assert torch.equal(found, fp8_linear(*quantise_rows(x), *quantise_rows(w), bias, out_dtype=torch.float32))
        plain = F.linear(x, w, bias)
        assert 0.001 < float((found - plain).norm() / plain.norm()) < 0.04


class TestChoice:
    def test_it_says_why_not(self) -> None:
        assert "only emulated" in str(why_not_fp8("cpu", 131072, 1024, 1024))
        assert why_no_fp8("cpu", 1 << 20) is not None

    def test_shapes_that_do_not_pay_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from longview.ops.quantisation import choice

        monkeypatch.setattr(choice, "why_no_triton", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        assert why_not_fp8("cuda", 1 << 17, 2048, 2048) is None
        assert "inner width is 128" in str(why_not_fp8("cuda", 1 << 17, 128, 512))
        assert "there are 100 rows" in str(why_not_fp8("cuda", 100, 2048, 2048))
        assert "multiples of 16" in str(why_not_fp8("cuda", 1 << 17, 2056, 2048))
        assert "up to 8192" in str(why_not_fp8("cuda", 1 << 17, 16384, 2048))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        assert "compute capability 8.0; E4M3 products need 8.9" in str(why_not_fp8("cuda", 1 << 17, 2048, 2048))

    def test_the_pipeline_says_why_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        triton = pytest.importorskip("triton")
        from longview.ops.quantisation import choice

        assert choice.why_no_pipeline("cpu") is not None
        monkeypatch.setattr(choice, "why_no_triton", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(triton, "__version__", "3.6.0")
        assert choice.why_no_pipeline("cuda") is None
        monkeypatch.setattr(triton, "__version__", "3.7.1")
        assert "for Triton 3.6; here is 3.7.1" in str(choice.why_no_pipeline("cuda"))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
        assert "capability 8.9" in str(choice.why_no_pipeline("cuda"))


def _same_numbers(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Compare with a float64 definition: another order of sums may move a value across a rounding boundary."""
    values, scale = (x.double().cpu() for x in found)
    torch.testing.assert_close(scale, expected[1], rtol=1e-5, atol=0)
    off = values != expected[0]
    assert float(off.double().mean()) < 0.005
    assert bool(
        ((values - expected[0]).abs() <= torch.maximum(expected[0].abs() / 8, torch.tensor(2.0**-9)))[off].all()
    )
