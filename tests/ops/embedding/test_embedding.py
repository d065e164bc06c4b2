"""Lookups, sums by id and row-wise optimisers: plain torch and the kernels agree, whatever repeats.

Without a GPU the kernels run in Triton's interpreter, in float32.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from longview.errors import InputError
from longview.ops.embedding import (
    RowwiseAdagrad,
    RowwiseAdamW,
    RowwiseOptimiser,
    embedding_lookup,
    group_ids,
    reference,
    sum_by_id,
)
from tests.ops.offline import compiled

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Against torch's own optimisers: a GPU rounds products and quotients of the moments in another order.
TORCHS = {"rtol": 1e-4, "atol": 1e-5} if DEVICE == "cuda" else {"rtol": 1e-5, "atol": 1e-6}
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
PATHS: list[Literal["torch", "triton"]] = ["torch", "triton"]
ROWS = 12
OPTIMISERS: list[Any] = [
    lambda table, **o: RowwiseAdagrad(table, rate=0.1, **o),
    lambda table, **o: RowwiseAdamW(table, rate=0.1, weight_decay=0.1, **o),
]

IDS = {
    "none": [],
    "one": [4],
    "distinct": [3, 1, 2, 11, 0],
    "all the same": [7] * 600,
    "ordinary": [3, 1, 3, 3, 9, 1],
    "popular ones": [5] * 270 + [2] * 10 + [8] * 513 + [0, 11] * 9 + [5] * 250,
    "just as many as a program takes": [5] * 256 + [6] * 257,
}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of more than four lookups are long, and read two rows at a time."""
    from longview.ops.embedding import triton_segments

    monkeypatch.setattr(triton_segments, "LIMIT", 4)
    monkeypatch.setattr(triton_segments, "rows_at_once", lambda padded: 2)


def batch(ids: list[int], width: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    grads = torch.randn(len(ids), width, generator=torch.Generator().manual_seed(seed))
    return torch.tensor(ids, dtype=torch.int64, device=DEVICE), grads.to(DEVICE)


def exact_sums(ids: Tensor, grads: Tensor) -> Tensor:
    table = torch.zeros(ROWS, grads.shape[1], dtype=torch.float64, device=DEVICE)
    return table.index_put_((ids,), grads.double(), accumulate=True)


class TestGrouping:
    @given(st.lists(st.integers(0, ROWS - 1), max_size=40))
    @settings(deadline=None)
    def test_segments_are_the_lookups_of_each_id_in_order(self, ids: list[int]) -> None:
        order, rank, unique, offsets, num_segments = group_ids(torch.tensor(ids, dtype=torch.int64), ROWS)
        distinct = sorted(set(ids))
        assert num_segments.tolist() == [len(distinct)]
        assert unique.tolist() == distinct + [-1] * (len(ids) - len(distinct))
        assert offsets[len(distinct) :].eq(len(ids)).all()
        for segment, wanted in enumerate(distinct):
            found = slice(int(offsets[segment]), int(offsets[segment + 1]))
            assert order[found].tolist() == [at for at, one in enumerate(ids) if one == wanted]
            assert rank[found].eq(segment).all()


@pytest.mark.parametrize("path", PATHS)
class TestSums:
    @pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
    @pytest.mark.parametrize("width", [1, 20, 64])
    def test_rows_are_summed_by_id(self, path: Any, ids: list[int], width: int) -> None:
        given = batch(ids, width)
        found = sum_by_id(*given, torch.float32, torch.Size((ROWS, width)), path=path)
        expected = exact_sums(*given)
        # Torch's own sums on a GPU have no fixed order.
        allowed = 1e-6 if path == "triton" or DEVICE == "cpu" else 1e-5
        assert (found - expected).norm() <= allowed * expected.norm()

    @given(ids=st.lists(st.sampled_from([0, 1, 1, 1, 1, 1, 5, 5, 11]), max_size=30))
    @settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @pytest.mark.usefixtures("small_pieces")
    def test_any_pattern_of_long_and_short_segments(self, path: Any, ids: list[int]) -> None:
        given = batch(ids, 3)
        found = sum_by_id(*given, torch.float32, torch.Size((ROWS, 3)), path=path)
        torch.testing.assert_close(found.double(), exact_sums(*given), rtol=1e-5, atol=1e-6)

    def test_a_nan_stays_in_its_row(self, path: Any) -> None:
        ids, grads = batch(IDS["popular ones"])
        grads[int((ids == 11).nonzero()[0])] = float("nan")
        found = sum_by_id(ids, grads, torch.float32, torch.Size((ROWS, 20)), path=path)
        assert found.isnan().any(1).nonzero().flatten().tolist() == [11]

    def test_a_lookup_has_the_gradient_of_torchs_own(self, path: Any) -> None:
        ids, grads = batch(IDS["ordinary"])
        table = torch.randn(ROWS, 20, device=DEVICE, requires_grad=True)
        rows = embedding_lookup(table, ids.view(2, 3), path=path)
        expected = nn.functional.embedding(ids.view(2, 3), table)
        assert torch.equal(rows, expected)
        (found,) = torch.autograd.grad(rows, table, grads.view(2, 3, 20))
        (wanted,) = torch.autograd.grad(expected, table, grads.view(2, 3, 20))
        torch.testing.assert_close(found, wanted)

    def test_a_sparse_gradient_holds_the_lookups(self, path: Any) -> None:
        ids, grads = batch(IDS["ordinary"])
        table = torch.randn(ROWS, 20, device=DEVICE, requires_grad=True)
        embedding_lookup(table, ids, sparse=True, path=path).backward(grads)
        assert table.grad is not None
        assert table.grad.is_sparse
        torch.testing.assert_close(table.grad.to_dense().double(), exact_sums(ids, grads))

    @pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
    def test_a_norm_is_that_of_the_sums(self, path: Any, ids: list[int]) -> None:
        lookups, grads = batch(ids)
        table = torch.randn(ROWS, 20, device=DEVICE, requires_grad=True)
        embedding_lookup(table, lookups, sparse=True).backward(grads)
        optimiser = RowwiseAdamW(table, path=path)
        before = table.detach().clone()
        exact = exact_sums(lookups, grads).square().sum()
        torch.testing.assert_close(optimiser.squared_norm().double(), exact, rtol=1e-5, atol=1e-6)
        optimiser.scale_gradient(torch.tensor(0.5, device=DEVICE))
        torch.testing.assert_close(optimiser.squared_norm().double(), exact / 4, rtol=1e-5, atol=1e-6)
        assert torch.equal(table, before)

    def test_bits_repeat(self, path: Any) -> None:
        given = batch(IDS["popular ones"])
        first, second = (sum_by_id(*given, torch.float32, torch.Size((ROWS, 20)), path=path) for _ in range(2))
        assert torch.equal(first, second) or (path == "torch" and DEVICE == "cuda")


class TestOptimisers:
    @pytest.mark.parametrize("path", PATHS)
    def test_adagrad_is_the_formula(self, path: Any) -> None:
        table = torch.ones(ROWS, 2, device=DEVICE)
        optimiser = RowwiseAdagrad(table, rate=0.5, eps=0.0, path=path)
        grads = torch.tensor([[1.0, 3.0], [2.0, 0.0], [3.0, 1.0]], device=DEVICE)
        optimiser.step(torch.tensor([4, 2, 4], device=DEVICE), grads)
        expected = torch.ones(ROWS, 2)
        expected[4] -= 0.5  # (4, 4) over the root of its mean square, 4
        expected[2, 0] -= 0.5 * 2 / 2**0.5
        torch.testing.assert_close(table.cpu(), expected)

    @pytest.mark.parametrize("path", PATHS)
    def test_adamw_of_touched_rows_is_torchs_when_every_row_is_touched(self, path: Any) -> None:
        start = torch.randn(ROWS, 20, device=DEVICE)
        table, dense = start.clone(), start.clone().requires_grad_()
        ours = RowwiseAdamW(table, rate=0.1, weight_decay=0.1, path=path)
        theirs = torch.optim.AdamW([dense], lr=0.1, weight_decay=0.1)
        for seed in range(3):
            ids, grads = batch([*range(ROWS), 3, 3, 7], seed=seed)
            dense.grad = exact_sums(ids, grads).float()
            ours.step(ids, grads)
            theirs.step()
        torch.testing.assert_close(table, dense.detach(), **TORCHS)

    @pytest.mark.parametrize("path", PATHS)
    def test_without_decay_it_is_torchs_sparse_adam(self, path: Any) -> None:
        start = torch.randn(ROWS, 20, device=DEVICE)
        table, other = start.clone().requires_grad_(), start.clone().requires_grad_()
        # Torch adds eps before it corrects the bias, so eps must be small to compare.
        ours = RowwiseAdamW(table, rate=0.1, eps=1e-12, path=path)
        theirs = torch.optim.SparseAdam([other], lr=0.1, eps=1e-12)
        for seed in range(3):
            ids, grads = batch(IDS["ordinary"], seed=seed)
            for weight in (table, other):
                embedding_lookup(weight, ids, sparse=True, path=path).backward(grads)
            ours.step_gradient()
            theirs.step()
            other.grad = None
        assert table.grad is None
        torch.testing.assert_close(table, other, **TORCHS)

    @pytest.mark.parametrize("make", OPTIMISERS)
    @pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
    def test_the_kernels_do_what_the_reference_does(self, make: Any, ids: list[int]) -> None:
        start = torch.randn(ROWS, 20, device=DEVICE)
        tables = [start.clone(), start.clone()]
        optimisers: list[RowwiseOptimiser] = [make(t, path=p) for t, p in zip(tables, PATHS, strict=True)]
        for seed in range(2):
            for optimiser in optimisers:
                optimiser.step(*batch(ids, seed=seed))
        torch.testing.assert_close(*tables, rtol=1e-4, atol=1e-5)
        for name, value in optimisers[0].tensors().items():
            torch.testing.assert_close(optimisers[1].tensors()[name].cpu(), value.cpu(), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("make", OPTIMISERS)
    @pytest.mark.parametrize("path", PATHS)
    def test_untouched_rows_keep_their_bits(self, make: Any, path: Any) -> None:
        table = torch.randn(ROWS, 20, device=DEVICE)
        before = table.clone()
        optimiser = make(table, path=path)
        for seed in range(2):
            optimiser.step(*batch(IDS["ordinary"], seed=seed))
        moved = (table != before).any(1).nonzero().flatten().tolist()
        assert moved == [1, 3, 9]

    @pytest.mark.parametrize("make", OPTIMISERS)
    @pytest.mark.parametrize("path", PATHS)
    def test_a_checkpoint_continues_bit_for_bit(self, make: Any, path: Any) -> None:
        table = torch.randn(ROWS, 20, device=DEVICE)
        optimiser = make(table, path=path)
        optimiser.step(*batch(IDS["ordinary"]))
        copy, saved = table.clone(), {name: value.clone() for name, value in optimiser.tensors().items()}
        resumed = make(copy, path=path)
        resumed.load_tensors(saved)
        for one in (optimiser, resumed):
            one.step(*batch(IDS["ordinary"], seed=1))
        assert torch.equal(table, copy)

    @pytest.mark.parametrize("make", OPTIMISERS)
    @pytest.mark.parametrize("path", ["torch", pytest.param("triton", marks=needs_gpu)])
    def test_a_bfloat16_table_moves_by_less_than_its_last_digit_on_average(self, make: Any, path: Any) -> None:
        table = torch.ones(1, 1024, dtype=torch.bfloat16, device=DEVICE)
        optimiser = make(table, path=path)
        optimiser.rate = 2**-12  # a sixteenth of the gap below 1
        optimiser.step(torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.ones(1, 1024, device=DEVICE))
        moved = (1 - table.float()).mean().item()
        assert table.unique().numel() == 2
        assert moved == pytest.approx(2**-12, rel=0.6)

    @needs_gpu
    @pytest.mark.parametrize("make", OPTIMISERS)
    def test_bfloat16_kernels_stay_close_and_repeat(self, make: Any) -> None:
        start = torch.randn(ROWS, 128, device=DEVICE)
        exact, one, two = start.clone(), start.bfloat16(), start.bfloat16()
        for table, path in ((exact, "torch"), (one, "triton"), (two, "triton")):
            ids, grads = batch(IDS["popular ones"], 128)
            make(table, path=path).step(ids, grads.to(table.dtype))
        assert torch.equal(one, two)
        assert (one.float() - exact).norm() <= 8e-3 * exact.norm()

    def test_what_does_not_fit_is_said(self) -> None:
        table = torch.zeros(ROWS, 20, device=DEVICE)
        with pytest.raises(InputError, match="contiguous"):
            RowwiseAdagrad(table.T)
        with pytest.raises(InputError, match=r"ids \(n,\) int64"):
            RowwiseAdagrad(table).step(torch.zeros(2, dtype=torch.int64), torch.zeros(3, 20))
        with pytest.raises(InputError, match="must be sparse"):
            RowwiseAdagrad(table).step_gradient()
        with pytest.raises(InputError, match="ids must be int64"):
            embedding_lookup(table, torch.zeros(2, dtype=torch.int32))
        with pytest.raises(InputError, match="the table is float64"):
            embedding_lookup(table.double(), torch.zeros(2, dtype=torch.int64), path="triton")
        with pytest.raises(InputError, match="'torch' or 'triton'"):
            embedding_lookup(table, torch.zeros(2, dtype=torch.int64), path="fast")  # type: ignore[arg-type]


VALUE = 1 + 2**-7 * 0.25  # a quarter of the way from 1 to the next bfloat16


def rounded_by_torch(values: Tensor) -> Tensor:
    return reference.round_stochastically(values, torch.Generator(values.device).manual_seed(0))


def rounded_by_kernel(values: Tensor, step: int = 1) -> Tensor:
    import triton
    import triton.language as tl

    from longview.ops.embedding.triton_segments import round_stochastically

    globals().update(tl=tl, round_stochastically=round_stochastically)
    out = torch.empty_like(values)
    triton.jit(_round_rows)[(1,)](values, out, step, ROWS=len(values), WIDTH=values.shape[1])
    return out


def _round_rows(values, out, step, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore # noqa: F821
    row, dims = tl.arange(0, ROWS)[:, None].to(tl.int64), tl.arange(0, WIDTH)[None, :]  # type: ignore # noqa: F821
    found = tl.load(values + row * WIDTH + dims)  # type: ignore # noqa: F821
    tl.store(out + row * WIDTH + dims, round_stochastically(found, row, dims, 5, step))  # type: ignore # noqa: F821


@pytest.mark.parametrize("rounded", [rounded_by_torch, rounded_by_kernel])
class TestStochasticRounding:
    def test_it_goes_up_as_often_as_the_value_is_near(self, rounded: Any) -> None:
        for sign in (1, -1):
            found = rounded(torch.full((16, 256), sign * VALUE, device=DEVICE)) * sign
            assert found.unique().tolist() == [1.0, 1 + 2**-7]
            assert ((found > 1).float().mean().item()) == pytest.approx(0.25, abs=0.03)

    def test_what_is_representable_or_infinite_stays(self, rounded: Any) -> None:
        values = torch.tensor([[0.0, 1.5, -2.0, float("inf")], [float("-inf"), 1.0, 0.5, float("nan")]], device=DEVICE)
        torch.testing.assert_close(rounded(values), values, rtol=0, atol=0, equal_nan=True)


def test_the_random_bits_depend_on_the_step_alone() -> None:
    values = torch.full((2, 64), VALUE, device=DEVICE)
    assert torch.equal(rounded_by_kernel(values), rounded_by_kernel(values))
    assert not torch.equal(rounded_by_kernel(values), rounded_by_kernel(values, step=2))


@pytest.mark.slow
def test_shipped_kernels_spill_nothing() -> None:
    for row in compiled("longview.ops.embedding.triton_segments"):
        assert row["stack"] == 0, row
