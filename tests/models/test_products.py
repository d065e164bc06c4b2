"""Products of a layer with 8-bit operands: the same numbers on every path through the layer, plain gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from longview.data.batches import batch_of_sequences
from longview.models import products
from longview.models.hstu import HSTULayer, Layout
from longview.models.incremental import Incremental
from longview.models.layer_config import AttentionConfig, LayerConfig
from longview.models.products import in_8_bits, linear
from longview.models.retriever import RetrieverConfig
from longview.ops.hstu_layer import LayerParameters
from longview.ops.hstu_layer.reference import reference_layer
from longview.ops.quantisation import fp8_linear, quantise_rows

WIDTH, HEADS, LENGTHS = 32, 2, [1, 40, 23]


def build(**settings: object) -> HSTULayer:
    torch.manual_seed(0)
    config = LayerConfig.model_validate({"precision": "fp8", **settings})
    made = HSTULayer(WIDTH, HEADS, 64, 0.0, config, AttentionConfig(local_window=9, global_size=5))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def layout() -> Layout:
    return Layout(torch.tensor([0, 1, 41, 64]), 40)


def given(seed: int = 1) -> Tensor:
    return torch.randn(sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(seed))


class TestChoice:
    def test_by_name(self) -> None:
        product = nn.Linear(1024, 1024)
        assert in_8_bits(torch.zeros(1, 1024), product, "fp8")
        assert not in_8_bits(torch.zeros(1, 1024), product, "run")

    def test_of_itself_where_it_is_faster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []
        monkeypatch.setattr(products, "why_not_fp8", lambda *shape: asked.append(shape) or "too few rows")
        assert not in_8_bits(torch.zeros(7, 32), nn.Linear(32, 96), "auto")
        assert asked == [(torch.device("cpu"), 7, 32, 96)]
        monkeypatch.setattr(products, "why_not_fp8", lambda *_: None)
        assert in_8_bits(torch.zeros(7, 32), nn.Linear(32, 96), "auto")


class TestProduct:
    def test_some_columns_are_those_of_all(self) -> None:
        product, x = nn.Linear(WIDTH, 96), given()
        for precision in ("run", "fp8"):
            whole = linear(x, product, precision)
            torch.testing.assert_close(linear(x, product, precision, slice(32, 64)), whole[:, 32:64])

    def test_rows_and_columns_have_a_scale_each(self) -> None:
        product, x = nn.Linear(WIDTH, 96), given()
        found = linear(x, product, "fp8")
        expected = fp8_linear(
            *quantise_rows(x), *quantise_rows(product.weight.detach()), product.bias.detach(), out_dtype=torch.float32
        )
        assert torch.equal(found, expected)

    def test_under_autocast_the_result_has_its_dtype(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            found = linear(given(), nn.Linear(WIDTH, 96), "fp8")
        assert found.dtype == torch.bfloat16


class TestLayer:
    @pytest.mark.parametrize("settings", [{}, {"activation": "u", "norm": "head", "alpha": "linear"}])
    def test_values_and_gradients_are_those_of_the_definition(self, settings: dict[str, str]) -> None:
        from dataclasses import replace

        from longview.ops.attention import semi_local_attention

        made, x = build(**settings), given().requires_grad_()
        out = made(x, layout())
        d_out = given(2)
        found = [out, *torch.autograd.grad(out, [x, *made.parameters()], d_out)]
        wide = made.double()
        leaves = [x.detach().double().requires_grad_(), *wide.parameters()]
        parameters = LayerParameters(*leaves[1:])
        whole = replace(made.fused, fp8_projection=True, fp8_output=True)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return semi_local_attention(
                q, k, v, layout().offsets, made.mask, alpha=made.alpha, scale_length=made.scale_length
            )

        exact = reference_layer(leaves[0], parameters, whole, attend)
        expected = [exact, *torch.autograd.grad(exact, leaves, d_out.double())]
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() < 5e-3 * b.norm()
        plain = reference_layer(leaves[0], parameters, made.fused, attend)
        assert (plain - exact).norm() > 1e-2 * (exact - leaves[0]).norm(), "quantisation must show"

    def test_the_newest_row_is_that_of_the_whole_pass(self) -> None:
        made, x = build(), given()
        torch.testing.assert_close(made.newest(x, layout()), made(x, layout())[[0, 40, 63]], rtol=1e-4, atol=1e-5)

    def test_a_cached_state_continues_as_the_whole_pass_does(self) -> None:
        torch.manual_seed(0)
        config = RetrieverConfig.model_validate(
            {
                "width": 32, "layers": 2, "max_length": 64, "layer": {"precision": "fp8"},
                "embedding": {"positions": "start"}, "attention": {"local_window": 5, "global_size": 3},
            }
        )  # fmt: skip
        model = config.build(50).eval()
        histories = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11]]
        inc = Incremental(model)
        before, after = ([h[:-2] for h in histories], [h[-2:] for h in histories])
        state = inc.append(inc.prefill(batch_of_sequences(before)), batch_of_sequences(after))
        whole = model.user_vectors(batch_of_sequences(histories))
        torch.testing.assert_close(inc.vectors(state), whole, rtol=1e-3, atol=1e-4)
