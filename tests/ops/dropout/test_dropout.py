"""Dropout: the rate, the scale, the gradient, and the seed that governs it."""

from __future__ import annotations

import pytest
import torch

from longview.ops.dropout import dropout

SHAPE = (503, 401)  # odd, so that the last random word is only partly used


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.9])
def test_elements_are_dropped_at_the_rate_and_the_mean_is_kept(rate: float) -> None:
    torch.manual_seed(0)
    out = dropout(torch.ones(SHAPE), rate, True)
    share = (out == 0).double().mean().item()
    error = 4 * (rate * (1 - rate) / out.numel()) ** 0.5
    assert share == pytest.approx(rate, abs=error)
    kept = out[out != 0]
    assert kept.allclose(torch.tensor(1 / (1 - rate)), rtol=1e-3)
    assert kept.unique().numel() == 1


def test_rows_and_columns_are_dropped_independently() -> None:
    torch.manual_seed(1)
    kept = (dropout(torch.ones(SHAPE), 0.5, True) != 0).double()
    for neighbours in (kept[1:] * kept[:-1], kept[:, 1:] * kept[:, :-1], kept[:, 4:] * kept[:, :-4]):
        assert neighbours.mean().item() == pytest.approx(0.25, abs=0.006)
    assert kept.mean(0).std().item() == pytest.approx(0.5 / SHAPE[0] ** 0.5, rel=0.15)


def test_the_gradient_passes_where_the_value_did() -> None:
    torch.manual_seed(2)
    x = torch.randn(SHAPE, requires_grad=True)
    out = dropout(x, 0.3, True)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient * x, out)


def test_the_torch_seed_governs_it() -> None:
    x = torch.ones(SHAPE)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = dropout(x, 0.5, True), dropout(x, 0.5, True)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.5, True), first)


def test_nothing_happens_outside_training_or_at_rate_zero() -> None:
    x = torch.ones(SHAPE)
    state = torch.get_rng_state()
    assert dropout(x, 0.5, False) is x
    assert dropout(x, 0.0, True) is x
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    out = dropout(torch.ones(SHAPE, dtype=dtype), 0.25, True)
    assert out.dtype == dtype
    assert out.double().mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("shape", [(0, 4), (1,), (3,), (2, 3, 5)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert dropout(torch.ones(shape), 0.5, True).shape == shape
