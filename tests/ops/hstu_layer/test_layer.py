"""The fused layer equals the layer written out: values, gradients, dropout, recomputation; and says what it refuses."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from longview.errors import InputError
from longview.ops.dropout.counter import draw_seed, dropout_mask, kept_scale, level
from longview.ops.hstu_layer import LayerParameters, LayerSettings, fused_layer, why_off
from tests.ops.hstu_layer.helpers import DEVICE, StandIn, errors, layer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
ON_GPU = torch.cuda.is_available()
FLAGS = ("recompute_normed", "recompute_uvqk", "recompute_gated")

SHAPES = [
    {"tokens": 1},
    {"tokens": 7, "width": 24, "heads": 3, "d_qk": 16, "d_v": 8},
    {"tokens": 130, "width": 64, "heads": 2, "d_qk": 8, "d_v": 16},
    {"tokens": 130, "width": 40, "heads": 1, "d_qk": 24, "d_v": 40},
]


class TestAgainstTheReference:
    @pytest.mark.parametrize("norm", ["row", "head"])
    @pytest.mark.parametrize("activation", ["uvqk", "u"])
    @pytest.mark.parametrize("rate", [0.0, 0.3])
    @pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"T{shape['tokens']}W{shape.get('width', 32)}")
    def test_float32(self, shape: dict[str, int], rate: float, activation: str, norm: str) -> None:
        case = layer(**shape, norm=norm, activation=activation, dropout=rate).rounded(torch.float32, torch.float32)
        torch.manual_seed(5)
        found = case.fused()
        torch.manual_seed(5)
        mask = dropout_mask(int(draw_seed(DEVICE)), case.z.shape[0], case.settings.gate, rate) if rate else None
        for name, error in errors(found, case.reference(mask=mask)).items():
            assert error < 1e-5, name

    def test_a_large_common_offset_of_a_row_costs_little(self) -> None:
        case = layer(tokens=7, width=64)
        case = replace(case, z=case.z + 100.0).rounded(torch.float32, torch.float32)
        assert errors(case.fused(), case.reference())["out"] < 1e-4

    def test_float16_stays_close(self) -> None:
        case = layer(tokens=7).rounded(torch.float16, torch.float16)
        assert max(errors(case.fused(torch.float16), case.reference()).values()) < 2e-3

    def test_a_float32_stream_under_autocast_is_normalised_before_it_is_rounded(self) -> None:
        case = layer(tokens=7)
        case = replace(case, z=case.z + 30.0).rounded(torch.float32, torch.float16)
        with torch.autocast(DEVICE, torch.float16):
            found = case.fused(torch.float32)
        assert found["out"].dtype == torch.float32
        assert errors(found, case.reference())["out"] < 2e-3

    @needs_gpu
    @pytest.mark.parametrize("norm", ["row", "head"])
    @pytest.mark.parametrize("stream", [torch.bfloat16, torch.float32])
    def test_bfloat16_under_autocast(self, stream: torch.dtype, norm: str) -> None:
        case = layer(tokens=700, width=256, heads=4, d_qk=64, d_v=64, norm=norm).rounded(stream, torch.bfloat16)
        with torch.autocast("cuda", torch.bfloat16):
            found = case.fused(stream, torch.float32)
            torch_version = case.reference(stream, torch.float32)
        exact = case.reference()
        ours, theirs = errors(found, exact), errors(torch_version, exact)
        for name, error in ours.items():
            assert error <= max(8e-3, 1.5 * theirs[name]), name
        assert ours["out"] <= 8e-3


class TestDropout:
    def test_the_kernels_drop_the_elements_that_the_counter_says(self) -> None:
        from longview.ops.hstu_layer.triton_output import Gate, gate_forward

        ones, seed = torch.ones(37, 48, device=DEVICE), torch.tensor([(1 << 61) + 12345], device=DEVICE)
        for groups in (1, 2):
            scale, shift = torch.zeros(48 // groups, device=DEVICE), torch.ones(48 // groups, device=DEVICE)
            gated, _ = gate_forward(ones, ones, Gate(scale, shift, groups, 1e-6, 0.3, seed))
            assert torch.equal(gated.double().cpu(), dropout_mask(int(seed), 37, 48, 0.3).float().double())

    def test_the_counter_is_philox(self) -> None:
        # Known answer of Random123 for seven rounds: counter 0, key 0.
        from longview.ops.dropout.counter import _philox

        zero = torch.zeros(1).numpy().astype("uint64")
        assert [int(word[0]) for word in _philox(0, zero, zero)] == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]

    def test_the_rate_and_the_mean_are_right(self) -> None:
        mask = dropout_mask(3, 2000, 64, 0.3)
        assert abs(float((mask == 0).double().mean()) - 0.3) < 0.005
        assert abs(float(mask.mean()) - 1) < 0.01
        assert (level(0.0), level(1e-9), kept_scale(0.0)) == (0, 1, 1.0)

    def test_a_seed_repeats_it_and_evaluation_has_none(self) -> None:
        case = layer(tokens=7, dropout=0.5)
        torch.manual_seed(1)
        first, second = case.fused()["out"], case.fused()["out"]
        torch.manual_seed(1)
        assert torch.equal(case.fused()["out"], first)
        assert not torch.equal(first, second)
        assert torch.equal(case.fused(training=False)["out"], case.with_settings(dropout=0.0).fused()["out"])


class TestRecomputation:
    @pytest.mark.parametrize("norm", ["row", "head"])
    def test_every_combination_of_flags_gives_the_same_bits(self, norm: str) -> None:
        case = layer(tokens=19, norm=norm, dropout=0.3)
        results = []
        for chosen in itertools.product([False, True], repeat=3):
            torch.manual_seed(2)
            results.append(case.with_settings(**dict(zip(FLAGS, chosen, strict=True))).fused())
        for other in results[1:]:
            for name, value in results[0].items():
                assert torch.equal(other[name], value), name

    def test_the_flags_decide_what_is_kept(self) -> None:
        # T × (z, A, and on request normed, U·V·Q·K twice, gated), beside statistics and parameters.
        case = layer(tokens=19, width=32, heads=2, d_qk=8, d_v=16)
        expected = {(): 32 + 32, FLAGS[:1]: 96, FLAGS[1:2]: 64 + 2 * 96, FLAGS[2:]: 96}
        for kept_flags, columns in expected.items():
            sizes: list[int] = []
            settings = replace(case.settings, **dict.fromkeys(kept_flags, False))
            z, *rest = case.leaves(torch.float32, torch.float32)
            with torch.autograd.graph.saved_tensors_hooks(
                lambda x, into=sizes: into.append(x.shape[1] if x.dim() == 2 and len(x) == 19 else 0) or x,  # type: ignore[func-returns-value]
                lambda x: x,
            ):
                fused_layer(z, LayerParameters(*rest), settings, StandIn(), True)
            assert sum(sizes) == columns, kept_flags

    def test_runs_repeat_bit_by_bit(self) -> None:
        case = layer(tokens=67)
        first = case.fused()
        for _ in range(3):
            again = case.fused()
            assert all(torch.equal(again[name], value) for name, value in first.items())

    def test_without_gradients_nothing_is_kept(self) -> None:
        case = layer(tokens=7)
        z, *rest = case.leaves(torch.float32, torch.float32)
        with torch.no_grad():
            out = fused_layer(z, LayerParameters(*rest), case.settings, StandIn(), True)
        assert out.grad_fn is None
        assert torch.equal(out, case.fused()["out"])

    def test_no_tokens_is_an_answer(self) -> None:
        case = layer(tokens=1)
        z, *rest = case.leaves(torch.float32, torch.float32)
        assert fused_layer(z[:0], LayerParameters(*rest), case.settings, StandIn(), True).shape == (0, 32)


class TestErrors:
    def test_shapes_are_named(self) -> None:
        case = layer(tokens=3)
        z, *rest = case.leaves(torch.float32, torch.float32)
        wrong = replace(LayerParameters(*rest), uvqk_bias=rest[3][:-1])
        with pytest.raises(InputError, match=r"uvqk_bias has shape \(95,\); expected \(96,\)"):
            fused_layer(z, wrong, case.settings, StandIn(), True)
        with pytest.raises(InputError, match=r"z is torch.float32 of shape \(32,\); expected \(tokens, width\)"):
            fused_layer(z[0], LayerParameters(*rest), case.settings, StandIn(), True)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"dropout": 1.0}, "dropout is 1.0"),
            ({"activation": "v"}, "activation is 'v'; expected one of uvqk, u"),
            ({"norm": "batch"}, "norm is 'batch'"),
            ({"heads": 0}, "heads is 0"),
            ({"epsilon": 0.0}, "epsilon is 0.0"),
        ],
    )
    def test_settings_are_named(self, changes: dict[str, object], message: str) -> None:
        case = layer(tokens=3)
        z, *rest = case.leaves(torch.float32, torch.float32)
        with pytest.raises(InputError, match=message):
            fused_layer(z, LayerParameters(*rest), replace(case.settings, **changes), StandIn(), True)

    def test_why_off_says_why(self) -> None:
        settings = LayerSettings(heads=2, d_qk=8, d_v=16)
        assert why_off(settings, 32, DEVICE, torch.float32) is None
        assert "multiple of 8" in str(why_off(replace(settings, d_qk=10), 32, DEVICE, torch.float32))
        assert "up to 2048" in str(why_off(settings, 4096, DEVICE, torch.float32))
        assert "float64" in str(why_off(settings, 32, DEVICE, torch.float64))
        if not ON_GPU:
            assert "bfloat16" in str(why_off(settings, 32, DEVICE, torch.bfloat16))

    def test_a_second_derivative_is_refused(self) -> None:
        case = layer(tokens=3)
        z, *rest = case.leaves(torch.float32, torch.float32)
        out = fused_layer(z, LayerParameters(*rest), case.settings, StandIn(), True)
        (gradient,) = torch.autograd.grad(out.square().sum(), z, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()
