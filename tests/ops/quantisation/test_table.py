"""Quantised tables: error bounds, storage, lookups, scores, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longview.errors import InputError
from longview.models.retriever import RetrieverConfig
from longview.ops.quantisation import (
    QuantisedEmbedding,
    QuantisedEmbeddingBag,
    QuantisedTable,
    quantise_model_tables,
    reference,
)
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


class TestPooled:
    @settings(max_examples=40, deadline=None)
    @given(
        sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
        how=st.sampled_from(["sum", "mean", "weights"]),
        ids_type=st.sampled_from([torch.int64, torch.int32]),
        seed=st.integers(0, 99),
    )
    def test_bags_as_torch_sums_the_dequantised_rows(
        self, sizes: list[int], how: str, ids_type: torch.dtype, seed: int
    ) -> None:
        table = QuantisedTable.from_table(normal(20, 70, seed=seed), 4, 32)
        offsets = torch.tensor([0, *sizes]).cumsum(0)
        ids = torch.randint(20, (int(offsets[-1]),), generator=torch.Generator().manual_seed(seed))
        weights = normal(len(ids), seed=seed + 1) if how == "weights" else None
        mode = "mean" if how == "mean" else "sum"
        found = table.pooled(ids.to(ids_type), offsets.to(ids_type), weights, mode=mode)
        expected = nn.functional.embedding_bag(
            ids, table.dequantise(), offsets, mode=mode, per_sample_weights=weights, include_last_offset=True
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    def test_more_rows_than_are_dequantised_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("longview.ops.quantisation.table.BLOCK", 3)
        table = QuantisedTable.from_table(torch.ones(5, 64), 8)
        found = table.pooled(torch.arange(5).repeat(2), torch.tensor([0, 4, 10]), torch.arange(10.0))
        assert found[:, 0].tolist() == [6, 39]

    def test_bags_without_ids_are_zeros_and_no_bags_are_no_rows(self) -> None:
        table, none = QuantisedTable.from_table(normal(5, 64), 4), torch.zeros(0, dtype=torch.int64)
        found = table.pooled(none, torch.zeros(4, dtype=torch.int64), mode="mean", dtype=torch.bfloat16)
        assert torch.equal(found, torch.zeros(3, 64, dtype=torch.bfloat16))
        assert table.pooled(none, torch.zeros(1, dtype=torch.int64)).shape == (0, 64)

    @pytest.mark.parametrize(
        ("given_instead", "message"),
        [
            ({"mode": "max"}, "mode is 'max'; expected sum or mean"),
            ({"ids": torch.zeros(2, 2, dtype=torch.int64)}, r"ids of bags have shape \(2, 2\)"),
            ({"ids": torch.tensor([0, 9, 1, 2])}, r"id 9 is outside 0 to 4 \(1 of 4"),
            ({"offsets": torch.tensor([0.0, 4.0])}, "offsets are torch.float32"),
            ({"offsets": torch.zeros(0, dtype=torch.int64)}, r"expected int64 or int32 of shape \(bags \+ 1,\)"),
            ({"offsets": torch.tensor([0, 3])}, "offsets go from 0 to 3; expected from 0 to the 4 ids"),
            ({"offsets": torch.tensor([1, 4])}, "offsets go from 1 to 4"),
            ({"offsets": torch.tensor([0, 3, 2, 4])}, "bag 1 ends at 2, before it begins, at 3"),
            (
                {"weights": torch.ones(3)},
                r"weights are torch.float32 of shape \(3,\); expected a floating one for each",
            ),
            ({"weights": torch.ones(4, dtype=torch.int64)}, "weights are torch.int64"),
            ({"weights": torch.ones(4), "mode": "mean"}, "weights go with mode sum, not mean"),
            ({"dtype": torch.float64}, "dtype is torch.float64"),
        ],
    )
    def test_what_does_not_fit_is_named(self, given_instead: dict[str, Any], message: str) -> None:
        table = QuantisedTable.from_table(normal(5, 64), 4)
        with pytest.raises(InputError, match=message):
            table.pooled(**{"ids": torch.tensor([0, 4, 1, 2]), "offsets": torch.tensor([0, 1, 4]), **given_instead})


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

    def test_more_rows_than_kernels_count(self) -> None:
        with pytest.raises(InputError, match="2147483648 rows; at most 2147483647, split the table"):
            QuantisedTable(2**31, 64, 4)

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

    def test_of_several_tables_none_is_replaced_where_one_is_refused(self) -> None:
        largest = nn.EmbeddingBag(2000, 8, mode="max")
        for refused, message in (
            (largest, "1 has the mode max; quantised tables have sum and mean"),
            (nn.Embedding(2000, 8, max_norm=1.0), r"1 renormalises rows it looks up \(max_norm=1.0\)"),
        ):
            model = nn.Sequential(nn.Embedding(2000, 8), refused)
            with pytest.raises(InputError, match=message):
                quantise_model_tables(model, bits=4)
            assert isinstance(model[0], nn.Embedding)


def bag_modules(**options: Any) -> tuple[nn.EmbeddingBag, QuantisedEmbeddingBag]:
    """A module of torch's whose rows are those of a table, and what takes its place in a model."""
    plain = nn.EmbeddingBag(2000, 64, **options)
    model = nn.Sequential(copy.deepcopy(plain))
    assert quantise_model_tables(model, bits=8) == ["0"]
    (quantised,) = model
    assert isinstance(quantised, QuantisedEmbeddingBag)
    with torch.no_grad():
        plain.weight.copy_(quantised.weight)
    return plain, quantised


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding", [None, 7, -1])
class TestBagModules:
    def test_ids_end_to_end(self, mode: str, padding: int | None) -> None:
        ids = torch.tensor([7, 5, 1999, 7, 7, 8, 1999])
        for last in (False, True):
            plain, quantised = bag_modules(mode=mode, padding_idx=padding, include_last_offset=last)
            offsets = torch.tensor([0, 3, 3, 5, *([7] if last else [])])
            found = quantised(ids, offsets)
            torch.testing.assert_close(found, plain(ids, offsets), rtol=1e-5, atol=1e-5)

    def test_ids_of_bags_of_one_size_with_weights_or_without(self, mode: str, padding: int | None) -> None:
        plain, quantised = bag_modules(mode=mode, padding_idx=padding)
        ids = torch.tensor([[7, 5, 1999], [7, 7, 7]])
        torch.testing.assert_close(quantised(ids), plain(ids), rtol=1e-5, atol=1e-5)
        weights = normal(2, 3)
        if mode == "sum":
            expected = plain(ids, per_sample_weights=weights)
            found = quantised(ids, per_sample_weights=weights)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        else:
            with pytest.raises(InputError, match="weights go with mode sum"):
                quantised(ids, per_sample_weights=weights)

    def test_offsets_where_they_do_not_belong(self, mode: str, padding: int | None) -> None:
        _, quantised = bag_modules(mode=mode, padding_idx=padding)
        with pytest.raises(InputError, match=r"ids have shape \(3,\), with no offsets"):
            quantised(torch.tensor([1, 2, 3]))
        with pytest.raises(InputError, match=r"ids have shape \(1, 2\), with offsets"):
            quantised(torch.tensor([[1, 2]]), torch.tensor([0]))
        with pytest.raises(InputError, match="offsets go from 1 to 2; expected from 0 to the 2 ids"):
            quantised(torch.tensor([1, 2]), torch.tensor([1]))
