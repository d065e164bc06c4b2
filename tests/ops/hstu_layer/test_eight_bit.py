"""The layer with FP8 products: the numbers of the layer written out with quantised operands, the plain gradients."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from longview.errors import InputError
from longview.ops import hstu_layer
from longview.ops.dropout.counter import draw_seed, dropout_mask
from longview.ops.hstu_layer import LayerParameters, LayerSettings, fused_layer, why_off
from tests.ops.hstu_layer.helpers import DEVICE, NAMES, StandIn, errors, layer

BOTH = {"fp8_projection": True, "fp8_output": True}
NEAR = 4e-3  # float32 sums put a few values on the other side of a rounding boundary than float64 does
needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)


class TestAgainstTheReference:
    @pytest.mark.parametrize("fp8", [BOTH, {"fp8_projection": True}, {"fp8_output": True}], ids=lambda x: "+".join(x))
    @pytest.mark.parametrize(("norm", "activation"), [("row", "uvqk"), ("head", "u")])
    @pytest.mark.parametrize("rate", [0.0, 0.3])
    def test_values_and_gradients(self, fp8: dict[str, bool], norm: str, activation: str, rate: float) -> None:
        case = layer(tokens=70, width=48, heads=2, d_qk=8, d_v=16, norm=norm, activation=activation, dropout=rate)
        case = case.with_settings(**fp8).rounded(torch.float32, torch.float32)
        torch.manual_seed(5)
        found = case.fused()
        torch.manual_seed(5)
        mask = dropout_mask(int(draw_seed(DEVICE)), 70, case.settings.gate, rate) if rate else None
        exact = case.reference(mask=mask)
        for name, error in errors(found, exact).items():
            assert error < NEAR, name
        plain = case.with_settings(**dict.fromkeys(BOTH, False)).reference(mask=mask)
        assert errors(plain, exact)["out"] > 2 * NEAR, "quantisation must show, or nothing was tested"

    def test_gradients_are_those_of_the_unquantised_products(self) -> None:
        """With the output product alone in 8 bits, forward changes nothing that backward reads."""
        case = layer(tokens=19, dropout=0.3)
        torch.manual_seed(2)
        plain = case.fused()
        torch.manual_seed(2)
        found = case.with_settings(fp8_output=True).fused()
        assert not torch.equal(found["out"], plain["out"])
        for name in NAMES:  # not the same bits everywhere: another kernel has measured the attention's rows
            assert float((found[name] - plain[name]).norm()) <= 1e-5 * float(plain[name].norm()), name

    @needs_hopper
    @pytest.mark.parametrize("width", [512, 1024, 2048])
    @pytest.mark.parametrize("stream", [torch.bfloat16, torch.float32])
    def test_on_the_tensor_cores(self, stream: torch.dtype, width: int) -> None:
        case = layer(tokens=700, width=width, heads=8, d_qk=width // 8, d_v=width // 8).with_settings(**BOTH)
        case = case.rounded(stream, torch.bfloat16)
        with torch.autocast("cuda", torch.bfloat16):
            found = case.fused(stream, torch.float32)
        for name, error in errors(found, case.reference()).items():
            assert error <= 2e-2, name

    @needs_hopper
    @pytest.mark.parametrize("activated", [4096, 1000])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_what_silu_sees_is_kept_on_the_way(self, dtype: torch.dtype, activated: int) -> None:
        from longview.ops.quantisation import quantise_rows, triton_hopper, triton_product

        generator = torch.Generator("cuda").manual_seed(0)
        x, w = (quantise_rows(torch.randn(n, 1024, device="cuda", generator=generator)) for n in (1300, 4096))
        bias = torch.randn(4096, device="cuda", generator=generator)
        plain = triton_hopper.product(*x, *w, bias, None, 0, torch.float32)
        for kernels in (triton_hopper, triton_product):
            pre = torch.full((1300, activated), torch.nan, dtype=dtype, device="cuda")
            out = kernels.product(*x, *w, bias, None, activated, dtype, pre=pre)
            again = kernels.product(*x, *w, bias, None, activated, dtype)
            assert torch.equal(out, again)
            near = {"rtol": 1e-2, "atol": 5e-2}
            torch.testing.assert_close(pre.float(), plain[:, :activated], **near)
            torch.testing.assert_close(out[:, activated:].float(), plain[:, activated:], **near)
            silu = torch.nn.functional.silu(plain[:, :activated])
            torch.testing.assert_close(out[:, :activated].float(), silu, **near)


class TestRecomputation:
    def test_every_combination_of_flags_gives_the_same_bits(self) -> None:
        case = layer(tokens=19, dropout=0.3).with_settings(**BOTH)
        flags = ("recompute_normed", "recompute_uvqk", "recompute_gated")
        results = []
        for chosen in itertools.product([False, True], repeat=3):
            torch.manual_seed(2)
            results.append(case.with_settings(**dict(zip(flags, chosen, strict=True))).fused())
        for other in results[1:]:
            for name, value in results[0].items():
                assert torch.equal(other[name], value), name


class TestErrors:
    def test_a_width_that_8_bit_rows_cannot_have_is_named(self) -> None:
        settings = LayerSettings(heads=2, d_qk=8, d_v=16, fp8_output=True)
        assert why_off(replace(settings, fp8_output=False), 40, DEVICE, torch.float32) is None
        assert "width is 40; FP8 products need a multiple of 16" in str(why_off(settings, 40, DEVICE, torch.float32))
        narrow = replace(settings, d_qk=4, heads=2)
        assert "heads * d_qk is 8" in str(why_off(replace(narrow, d_qk=8, heads=1), 32, DEVICE, torch.float32))

    def test_a_device_without_fp8_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case = layer(tokens=3).with_settings(**BOTH)
        z, *rest = case.leaves(torch.float32, torch.float32)
        monkeypatch.setattr(hstu_layer, "why_no_fp8", lambda *_: "this GPU has compute capability 8.0")
        with pytest.raises(InputError, match=r"cannot run here: this GPU has compute capability 8\.0"):
            fused_layer(z, LayerParameters(*rest), case.settings, StandIn(), True)
