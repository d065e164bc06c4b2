"""What is left once the tokens are done: sums of partial sums, and the gradients of the projection's parameters."""

from __future__ import annotations

import pytest
import torch

from longview.ops.hstu_layer import LayerParameters

pytest.importorskip("triton")
from longview.ops.hstu_layer.triton_parameters import column_sums, projection_gradients
from tests.ops.hstu_layer.helpers import DEVICE


@pytest.mark.parametrize("rows", [(1, 1, 1), (300, 5, 257)])
def test_column_sums_are_those_of_each_matrix_one_after_another(rows: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    whole = [torch.randn(count, size + 3, device=DEVICE) for count, size in zip(rows, (33, 64, 7), strict=True)]
    parts = [x[:, : x.shape[1] - 3] for x in whole]
    found = column_sums(*parts)
    torch.testing.assert_close(found, torch.cat([x.double().sum(0).float() for x in parts]), rtol=1e-5, atol=1e-4)
    assert torch.equal(found, column_sums(*parts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("columns", "width"), [(300, 20), (24, 8)])
def test_projection_gradients_follow_from_those_of_the_folded_weights(
    columns: int, width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    product, d_shift = torch.randn(columns, width, device=DEVICE), torch.randn(columns, device=DEVICE)
    vectors = [torch.randn(size, device=DEVICE, dtype=dtype) for size in (width, width, columns, 5, 5, width)]
    norm, shift, bias, *rest = vectors
    weight = torch.randn(columns, width, device=DEVICE, dtype=dtype)
    parameters = LayerParameters(norm, shift, weight, bias, *rest[:2], weight[:, :5], rest[2])
    d_gamma, d_beta, d_weight = projection_gradients(product, d_shift, parameters)

    w, m, d = weight.double(), product.double(), d_shift.double()
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(d_gamma, (w * m).sum(0).to(dtype), **tolerance)
    torch.testing.assert_close(d_beta, (d @ w).to(dtype), **tolerance)
    torch.testing.assert_close(d_weight, (m * norm.double() + d[:, None] * shift.double()).to(dtype), **tolerance)
