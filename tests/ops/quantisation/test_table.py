"""Quantised tables: error bounds, storage, lookups, scores, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longview.errors import InputError
from longview.models.retriever import RetrieverConfig
from longview.ops.quantisation import QuantisedEmbedding, QuantisedTable, quantise_model_tables, reference
from tests.ops.quantisation.helpers import normal

BITS_AND_GROUP = pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, 32), (8, 64)])


class TestRoundTrip:
    @settings(max_examples=40, deadline=None)
    @given(
        group=st.sampled_from([32, 64]),
        width=st.integers(1, 140),
        seed=st.integers(0, 99),
        size=st.floats(-12, 12),
        offset=st.floats(-3, 3),
    )
    def test_with_8_bits_every_value_is_within_half_a_step(
        self, group: int, width: int, seed: int, size: float, offset: float
    ) -> None:
        x = (normal(4, width, seed=seed) + offset) * 2.0**size
        table = QuantisedTable.from_table(x, 8, group)
        step = table.scale.float().repeat_interleave(group, 1)[:, :width]
        error = (table.dequantise() - x).abs()
        assert bool((error <= step / 2 * (1 + 1e-5) + x.abs() * 1e-6).all())
        # The step is what the group's range needs, and what float16 rounding of zero and scale adds to it.
        for row in range(4):
            part = x[row, :group]
            least = float(part.max() - part.min()) / 255
            added = float(part.abs().max()) * 2.0**-10 / 255 + 2.0**-24
            assert float(step[row, 0]) <= (least + added) * (1 + 2.0**-9) + 2.0**-24

    @settings(max_examples=40, deadline=None)
    @given(
        group=st.sampled_from([32, 64]),
        width=st.integers(1, 140),
        seed=st.integers(0, 99),
        size=st.floats(-12, 12),
        offset=st.floats(-3, 3),
    )
    def test_with_4_bits_the_squared_error_is_at_most_that_of_codes_that_cover_the_range(
        self, group: int, width: int, seed: int, size: float, offset: float
    ) -> None:
        x = (normal(4, width, seed=seed) + offset) * 2.0**size
        errors = (QuantisedTable.from_table(x, 4, group).dequantise() - x).square()
        for row in range(4):
            for begin in range(0, width, group):
                part = x[row, begin : begin + group]
                codes, scale, zero = reference.quantise_group(part, 4)
                covering = float((zero + scale * codes - part).square().sum())
                rounding = float(part.square().sum()) * 1e-12
                assert float(errors[row, begin : begin + group].sum()) <= covering * (1 + 1e-4) + rounding

    def test_fitting_4_bits_is_worth_a_tenth_of_the_squared_error(self) -> None:
        x = normal(200, 128)
        covering = 0.0
        for part in x.view(-1, 64):
            codes, scale, zero = reference.quantise_group(part, 4)
            covering += float((zero + scale * codes - part).square().sum())
        assert float((QuantisedTable.from_table(x, 4).dequantise() - x).square().sum()) < 0.9 * covering

    @pytest.mark.parametrize("group", [32, 64])
    def test_the_definition_group_by_group(self, group: int) -> None:
        x = normal(3, 150)
        table = QuantisedTable.from_table(x, 8, group)
        for row in range(3):
            for number, begin in enumerate(range(0, 150, group)):
                part = x[row, begin : begin + group]
                codes, scale, zero = reference.quantise_group(part, 8)
                assert (float(table.scale[row, number]), float(table.zero[row, number])) == (scale, zero)
                found = table.dequantise()[row, begin : begin + group]
                torch.testing.assert_close(found, zero + scale * codes, rtol=1e-6, atol=1e-6)

    def test_an_outlier_may_lie_beyond_4_bits(self) -> None:
        x = torch.cat([torch.linspace(-1, 1, 127), torch.tensor([1.5])])[None, :]
        table = QuantisedTable.from_table(x, 4)
        assert 1.3 < float(table.dequantise()[0, -1]) < 1.5
        assert float((table.dequantise() - x)[0, :-1].abs().max()) < 0.1

    @BITS_AND_GROUP
    def test_constant_rows_and_zero_rows(self, bits: int, group: int) -> None:
        x = torch.zeros(3, 100)
        x[1], x[2] = 0.25, -0.3
        found = QuantisedTable.from_table(x, bits, group).dequantise()
        assert torch.equal(found[:2], x[:2])
        assert float((found[2] + 0.3).abs().max()) < 1e-4

    def test_values_that_4_bits_have_come_back_exactly(self) -> None:
        x = torch.arange(16.0).repeat(4)[None, :] / 8 - 1
        assert torch.equal(QuantisedTable.from_table(x, 4).dequantise(), x)

    def test_the_largest_values_of_float16(self) -> None:
        x = torch.linspace(-65504, 65504, 64)[None, :]
        table = QuantisedTable.from_table(x, 4)
        assert float((table.dequantise() - x).abs().max()) <= float(table.scale.max()) / 2 * 1.001


class TestStorage:
    def test_how_much_smaller(self) -> None:
        weight = normal(100, 512).bfloat16()
        smaller = {
            (bits, group): weight.nbytes / QuantisedTable.from_table(weight, bits, group).nbytes
            for bits in (4, 8)
            for group in (32, 64)
        }
        assert smaller[4, 64] > 3.5
        assert smaller == {(4, 32): 3.2, (4, 64): 512 / 144, (8, 32): 1024 / 576, (8, 64): 1024 / 544}

    def test_codes_of_4_bits_lie_as_the_layout_says(self) -> None:
        x = torch.arange(64.0)[None, :] % 16
        packed = QuantisedTable.from_table(x, 4).packed[0]
        assert packed.tolist() == [(j % 16) | ((j + 32) % 16) << 4 for j in range(32)]

    def test_a_table_is_saved_and_loaded(self, tmp_path: Path) -> None:
        table = QuantisedTable.from_table(normal(9, 70), 4, 32)
        save_file(table.state_dict(), tmp_path / "table.safetensors")
        other = QuantisedTable(9, 70, 4, 32)
        other.load_state_dict(load_file(tmp_path / "table.safetensors"))
        assert torch.equal(other.dequantise(), table.dequantise())
        assert table.nbytes == 9 * (3 * 16 + 3 * 4)


class TestLookup:
    @BITS_AND_GROUP
    def test_rows_of_the_dequantised_table(self, bits: int, group: int) -> None:
        table = QuantisedTable.from_table(normal(20, 100), bits, group)
        ids = torch.tensor([[3, 19, 0], [3, 3, 7]])
        assert torch.equal(table.lookup(ids), table.dequantise()[ids])
        assert torch.equal(table.lookup(ids.int(), torch.bfloat16), table.dequantise(torch.bfloat16)[ids])
        assert table.lookup(ids[:0]).shape == (0, 3, 100)

    @pytest.mark.parametrize("wrong", [-1, 20])
    def test_an_id_outside_is_named(self, wrong: int) -> None:
        table = QuantisedTable.from_table(normal(20, 64), 4)
        with pytest.raises(InputError, match=rf"id {wrong} is outside 0 to 19 \(1 of 3 ids are\)"):
            table.lookup(torch.tensor([0, wrong, 5]))

    def test_ids_and_dtypes_of_the_wrong_kind(self) -> None:
        table = QuantisedTable.from_table(normal(20, 64), 4)
        with pytest.raises(InputError, match=r"ids are torch.float32"):
            table.lookup(torch.tensor([0.0]))
        with pytest.raises(InputError, match=r"dtype is torch.int8"):
            table.lookup(torch.tensor([0]), torch.int8)


class TestScores:
    def test_the_whole_table_in_blocks_of_any_size(self) -> None:
        table, queries = QuantisedTable.from_table(normal(50, 64), 8), normal(3, 64, seed=1)
        expected = queries @ table.dequantise().T
        for block in (1, 7, 50, 1000):
            torch.testing.assert_close(table.scores(queries, block=block), expected)

    def test_candidates_of_each_query(self) -> None:
        table, queries = QuantisedTable.from_table(normal(50, 64), 8), normal(3, 64, seed=1)
        ids = torch.tensor([[1, 2], [3, 4], [49, 0]])
        torch.testing.assert_close(table.scores(queries, ids), table.scores(queries).gather(1, ids))

    def test_shapes_that_do_not_fit(self) -> None:
        table = QuantisedTable.from_table(normal(50, 64), 8)
        with pytest.raises(InputError, match=r"queries have shape \(3, 63\); expected \(queries, 64\)"):
            table.scores(normal(3, 63))
        with pytest.raises(InputError, match=r"ids have shape \(2, 1\); expected \(3, candidates\)"):
            table.scores(normal(3, 64), torch.zeros(2, 1, dtype=torch.int64))


class TestRefusals:
    @pytest.mark.parametrize(("bits", "group", "message"), [(2, 64, "bits is 2"), (4, 16, "group is 16")])
    def test_bits_and_groups(self, bits: int, group: int, message: str) -> None:
        with pytest.raises(InputError, match=message):
            QuantisedTable.from_table(normal(2, 64), bits, group)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [(torch.nan, "row 1 has an infinity or a NaN"), (-torch.inf, "an infinity"), (7e4, "beyond float16's 65504")],
    )
    def test_values_without_a_code(self, wrong: float, message: str) -> None:
        x = normal(3, 64)
        x[1, 5] = wrong
        with pytest.raises(InputError, match=message):
            QuantisedTable.from_table(x, 4)

    @pytest.mark.parametrize("x", [torch.zeros(4), torch.zeros(2, 3, dtype=torch.int64)])
    def test_what_is_no_matrix_of_floats(self, x: Tensor) -> None:
        with pytest.raises(InputError, match="expected a floating matrix"):
            QuantisedTable.from_table(x, 4)

    def test_an_empty_table(self) -> None:
        with pytest.raises(InputError, match="0 rows of 64 values"):
            QuantisedTable.from_table(torch.zeros(0, 64), 4)


class TestModels:
    def test_large_tables_of_a_retriever_are_replaced_and_its_vectors_stay_close(self) -> None:
        model = RetrieverConfig(width=64, layers=1).build(2000).eval()
        before = model.item_vectors().detach().clone()
        assert quantise_model_tables(model, bits=8) == ["embedding.items"]
        assert isinstance(model.embedding.items, QuantisedEmbedding)
        after = model.item_vectors()
        assert 0 < float((after - before).norm() / before.norm()) < 0.01
        ids = torch.tensor([0, 1999])
        assert torch.equal(model.embedding.items(ids), after[ids])

    def test_a_model_without_a_large_table(self) -> None:
        with pytest.raises(InputError, match="no embedding table of 1024 rows or more"):
            quantise_model_tables(nn.Sequential(nn.Embedding(10, 4)), bits=4)
