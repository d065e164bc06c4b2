"""The fused sum of lookups against the same in plain torch; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.embedding import Term, summed_lookup, why_not_summed
from tests.ops.offline import compiled

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tables(width: int, sizes: tuple[int, ...] = (7, 5, 3), tokens: int = 21) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, width, generator=generator).to(DEVICE).requires_grad_(),
            torch.randint(size, (tokens,), generator=generator).to(DEVICE),
        )
        for size in sizes
    ]


@pytest.mark.parametrize("width", [8, 24])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_it_equals_lookups_added_up(count: int, width: int) -> None:
    given, factors = tables(width)[:count], (3.0, 1.0, 0.5)
    terms = [Term(table, ids, factor) for (table, ids), factor in zip(given, factors, strict=False)]
    found = summed_lookup(terms)
    expected = sum(term.table.double()[term.ids] * term.factor for term in terms)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)

    d_out = torch.randn_like(found)
    leaves = [term.table for term in terms]
    for mine, exact in zip(
        torch.autograd.grad(found, leaves, d_out), torch.autograd.grad(expected, leaves, d_out.double()), strict=True
    ):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5)


def test_dropped_elements_are_zero_and_get_no_gradient_and_the_others_are_scaled_up() -> None:
    ((table, ids), (positions, places), _) = tables(512, tokens=64)
    torch.manual_seed(5)
    found = summed_lookup([Term(table, ids, 2.0), Term(positions, places)], dropout=0.25)
    plain = 2 * table[ids] + positions[places]
    kept = found != 0
    assert 0.70 < kept.float().mean() < 0.80
    torch.testing.assert_close(found, torch.where(kept, plain / 0.75, 0.0), rtol=1e-5, atol=1e-5)
    grad, grad_positions = torch.autograd.grad(found.sum(), [table, positions])
    mask = kept.double() / 0.75
    expected = torch.zeros(table.shape, dtype=torch.float64, device=DEVICE).index_add_(0, ids, 2 * mask)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-5)
    expected = torch.zeros(positions.shape, dtype=torch.float64, device=DEVICE).index_add_(0, places, mask)
    torch.testing.assert_close(grad_positions.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_seed_of_torch_governs_what_is_dropped() -> None:
    ((table, ids), *_) = tables(64)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(summed_lookup([Term(table, ids)], dropout=0.5).detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_sparse_gradient_stands_for_the_dense_one() -> None:
    ((table, ids), *_) = tables(16)
    dense = torch.autograd.grad(summed_lookup([Term(table, ids, 3.0)]).square().sum(), table)[0]
    sparse = torch.autograd.grad(summed_lookup([Term(table, ids, 3.0, sparse=True)]).square().sum(), table)[0]
    assert sparse.is_sparse
    torch.testing.assert_close(sparse.to_dense(), dense)


def test_no_tokens_are_no_rows() -> None:
    table = torch.randn(4, 16, device=DEVICE, requires_grad=True)
    found = summed_lookup([Term(table, torch.zeros(0, dtype=torch.int64, device=DEVICE))])
    assert found.shape == (0, 16)
    assert torch.autograd.grad(found.sum(), table)[0].count_nonzero() == 0


class TestBadInput:
    def test_tables_of_different_widths_are_named(self) -> None:
        a, b = torch.randn(4, 8, device=DEVICE), torch.randn(4, 16, device=DEVICE)
        ids = torch.zeros(3, dtype=torch.int64, device=DEVICE)
        with pytest.raises(InputError, match=r"\(V, 8\) with ids \(3,\) expected, got \(4, 16\)"):
            summed_lookup([Term(a, ids), Term(b, ids)])

    def test_what_the_kernel_does_not_serve_is_said(self) -> None:
        table, ids = torch.randn(4, 12, device=DEVICE), torch.zeros(3, dtype=torch.int64, device=DEVICE)
        assert "8 columns" in str(why_not_summed([Term(table, ids)]))
        with pytest.raises(InputError, match="4"):
            summed_lookup([Term(torch.randn(4, 8, device=DEVICE), ids)] * 4)
        with pytest.raises(InputError, match="at least one"):
            summed_lookup([])


@pytest.mark.slow
def test_every_shipped_configuration_compiles_for_hopper() -> None:
    rows = compiled("longview.ops.embedding.triton_summed")
    assert len(rows) == 10
    assert not any(row["stack"] for row in rows), rows
