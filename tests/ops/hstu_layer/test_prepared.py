"""A layer whose weights are prepared once gives what the fused layer gives without dropout, whoever else is there."""

from __future__ import annotations

import pytest
import torch

from longview.ops.hstu_layer import LayerParameters
from longview.ops.hstu_layer.prepared import PreparedLayer
from tests.ops.hstu_layer.helpers import DEVICE, Layer, attend, layer

DTYPES = [torch.float32] + ([torch.bfloat16] if DEVICE == "cuda" else [])


def prepared(case: Layer, product: torch.dtype) -> PreparedLayer:
    parameters = LayerParameters(*(x.to(DEVICE, torch.float32) for x in case.parameters.tensors()))
    return PreparedLayer.of(parameters, case.settings, product)


@pytest.mark.parametrize("product", DTYPES)
@pytest.mark.parametrize("norm", ["row", "head"])
@pytest.mark.parametrize("activation", ["uvqk", "u"])
def test_it_equals_the_fused_layer(activation: str, norm: str, product: torch.dtype) -> None:
    case = layer(tokens=40, activation=activation, norm=norm, dropout=0.5).rounded(product, torch.float32)
    found = prepared(case, product)(case.z.to(DEVICE, product), attend)
    expected = case.fused(product, torch.float32, training=False)["out"]
    assert found.dtype == product
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("product", DTYPES)
def test_a_row_has_the_same_bits_alone(product: torch.dtype) -> None:
    case = layer(tokens=130).rounded(product, torch.float32)
    ready, z = prepared(case, product), case.z.to(DEVICE, product)
    together = ready(z, lambda q, k, v: v)
    for row in (0, 77, 129):
        assert torch.equal(ready(z[row : row + 1], lambda q, k, v: v)[0], together[row])
    assert ready(z[:0], lambda q, k, v: v).shape == (0, 32)


def test_products_in_8_bits_are_left_to_the_fused_layer() -> None:
    with pytest.raises(ValueError, match="call fused_layer"):
        prepared(layer(fp8_output=True), torch.float32)
