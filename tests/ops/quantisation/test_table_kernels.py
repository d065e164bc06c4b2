"""The kernels of quantised tables against plain torch: in Triton's interpreter here, compiled where there is a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from longview.ops.quantisation import QuantisedTable
from tests.ops.offline import compiled
from tests.ops.quantisation.helpers import normal

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class TestLookup:
    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("group", [32, 64])
    @pytest.mark.parametrize("width", [7, 64, 200])
    def test_the_rows_of_the_plain_path(self, width: int, group: int, bits: int) -> None:
        from longview.ops.quantisation.triton_table import lookup

        table = QuantisedTable.from_table(normal(50, width), bits, group)
        ids = torch.randint(50, (33,), generator=torch.Generator().manual_seed(1))
        for given_ids in (ids, ids.int()):
            found = lookup(table.rows.to(DEVICE), given_ids.to(DEVICE), width, bits, group, torch.float32)
            torch.testing.assert_close(found.cpu(), table.lookup(ids), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("size", [2.0**-22, 2.0**12])
    def test_the_smallest_and_the_largest_scales_of_float16(self, size: float) -> None:
        from longview.ops.quantisation.triton_table import lookup

        for bits in (4, 8):
            table = QuantisedTable.from_table(normal(9, 128).clamp(-4, 4) * size, bits)
            found = lookup(table.rows.to(DEVICE), torch.arange(9).to(DEVICE), 128, bits, 64, torch.float32)
            torch.testing.assert_close(found.cpu(), table.dequantise(), rtol=1e-6, atol=1e-6 * size)

    def test_a_row_that_does_not_exist_is_one_of_nan(self) -> None:
        from longview.ops.quantisation.triton_table import lookup

        table = QuantisedTable.from_table(normal(5, 64), 4)
        found = lookup(table.rows.to(DEVICE), torch.tensor([4, 5, -1]).to(DEVICE), 64, 4, 64, torch.float32)
        assert found.isnan().all(1).tolist() == [False, True, True]
        assert not found[0].isnan().any()

    @needs_gpu
    def test_a_table_in_pinned_memory_of_the_host(self) -> None:
        table = QuantisedTable.from_table(normal(500, 128), 4)
        ids = torch.randint(500, (64,))
        expected = table.lookup(ids, torch.bfloat16)
        with pytest.raises(Exception, match="pin_memory"):
            table.lookup(ids.cuda())
        offsets = torch.tensor([0, 5, 5, 64])
        sums = table.pooled(ids, offsets)
        torch.testing.assert_close(table.pin_memory().lookup(ids.cuda(), torch.bfloat16).cpu(), expected)
        torch.testing.assert_close(table.pooled(ids.cuda(), offsets.cuda()).cpu(), sums)


def pooled(
    table: QuantisedTable, ids: Tensor, offsets: Tensor, weights: Tensor | None = None, *, mean: bool = False
) -> Any:
    from longview.ops.quantisation import triton_table

    given = [None if t is None else t.to(DEVICE) for t in (table.rows, ids, offsets, weights)]
    return triton_table.pooled(*given, mean, *table.layout, torch.float32).cpu()  # type: ignore[arg-type]


class TestPooled:
    @settings(max_examples=25, deadline=None)
    @given(
        width=st.sampled_from([7, 64, 128, 200]),
        bits_and_group=st.sampled_from([(4, 32), (4, 64), (8, 64)]),
        sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
        how=st.sampled_from(["sum", "mean", "weights"]),
        ids_type=st.sampled_from([torch.int64, torch.int32]),
        seed=st.integers(0, 99),
    )
    def test_bags_of_any_size_as_torch_sums_the_dequantised_rows(
        self,
        width: int,
        bits_and_group: tuple[int, int],
        sizes: list[int],
        how: str,
        ids_type: torch.dtype,
        seed: int,
    ) -> None:
        table = QuantisedTable.from_table(normal(30, width, seed=seed), *bits_and_group)
        offsets = torch.tensor([0, *sizes]).cumsum(0)
        n = int(offsets[-1])
        ids = torch.randint(30, (n,), generator=torch.Generator().manual_seed(seed))
        weights = normal(n, seed=seed + 1) if how == "weights" else None
        found = pooled(table, ids.to(ids_type), offsets.to(ids_type), weights, mean=how == "mean")
        mode = "mean" if how == "mean" else "sum"
        expected = F.embedding_bag(
            ids, table.dequantise(), offsets, mode=mode, per_sample_weights=weights, include_last_offset=True
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)

    def test_a_row_that_does_not_exist_makes_its_bag_one_of_nan(self) -> None:
        table = QuantisedTable.from_table(normal(5, 64), 4)
        found = pooled(table, torch.tensor([4, 5, 1, -1, 0]), torch.tensor([0, 1, 3, 4, 5]))
        assert found.isnan().all(1).tolist() == [False, True, True, False]
        assert not found[[0, 3]].isnan().any()

    def test_offsets_outside_count_as_the_nearest_inside(self) -> None:
        table = QuantisedTable.from_table(normal(5, 64), 8)
        found = pooled(table, torch.tensor([4, 2]), torch.tensor([-3, 1, 99]))
        torch.testing.assert_close(found, table.dequantise()[[4, 2]])

    @needs_gpu
    def test_long_bags_in_bfloat16_give_the_same_bits_every_time(self) -> None:
        table = QuantisedTable.from_table(normal(5000, 512), 4).cuda()
        ids, offsets = torch.randint(5000, (40_000,)).cuda(), torch.tensor([0, 30_000, 30_001, 40_000]).cuda()
        first = table.pooled(ids, offsets, dtype=torch.bfloat16)
        assert torch.equal(first, table.pooled(ids, offsets, dtype=torch.bfloat16))
        exact = F.embedding_bag(ids, table.dequantise().double(), offsets, mode="sum", include_last_offset=True)
        assert float((first.double() - exact).norm() / exact.norm()) < 3e-3


class TestScores:
    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("width", [7, 64, 200])
    def test_scores_of_candidates(self, width: int, bits: int) -> None:
        from longview.ops.quantisation.triton_table import scores

        table, queries = QuantisedTable.from_table(normal(50, width), bits), normal(3, width, seed=2)
        ids = torch.randint(50, (3, 70), generator=torch.Generator().manual_seed(1))
        found = scores(table.rows.to(DEVICE), ids.to(DEVICE), queries.to(DEVICE), bits, 64)
        torch.testing.assert_close(found.cpu(), table.scores(queries, ids), rtol=1e-4, atol=1e-4)
        ids[1, 2] = 50
        found = scores(table.rows.to(DEVICE), ids.to(DEVICE), queries.to(DEVICE), bits, 64)
        assert found.isnan().nonzero().tolist() == [[1, 2]]


def test_shipped_configurations_keep_everything_in_registers_and_lookups_and_sums_leave_room_for_many_warps() -> None:
    for row in compiled("longview.ops.quantisation.triton_table"):
        assert row["stack"] == 0, row
        if not row["name"].startswith("scores"):
            assert row["registers"] <= 72, row
