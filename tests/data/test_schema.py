"""What a model reads beside items: buckets of strengths, features of users, actions; and what it has never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longview.data.dataset import PreparedData
from longview.data.schema import Buckets, Feature, Inputs, Schema, training_events
from longview.errors import InputError
from tests.ranking_log import write_ranking

numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_ranking(tmp_path_factory.mktemp("schema") / "shop")


def make(data: PreparedData, *, actions: bool = True, context: tuple[str, ...] = ()) -> Schema:
    return Schema.of(data, actions=actions, strength_buckets=16, context=context, context_buckets=8)


class TestBuckets:
    @given(values=numbers, count=st.integers(1, 12))
    def test_codes_keep_the_order_of_values(self, values: list[float], count: int) -> None:
        buckets = Buckets.of("x", np.array(values), count)
        codes = buckets.encode(np.sort(values))
        assert (np.diff(codes) >= 0).all()
        assert codes.min() >= 1
        assert codes.max() < buckets.num_codes <= count + 1

    def test_few_values_keep_a_bucket_each(self) -> None:
        buckets = Buckets.of("rating", np.array([1.0, 2, 5, 5, 2]), 16)
        assert buckets.encode(np.array([1.0, 2, 5])).tolist() == [1, 2, 3]

    def test_many_values_share_buckets_of_like_sizes(self) -> None:
        buckets = Buckets.of("seconds", np.arange(1000.0), 10)
        assert np.bincount(buckets.encode(np.arange(1000.0)))[1:].tolist() == pytest.approx([100] * 10, abs=2)

    def test_out_of_range_is_the_end_bucket_and_none_is_zero(self) -> None:
        buckets = Buckets.of("rating", np.array([1.0, 2, 5]), 16)
        assert buckets.encode(np.array([-np.inf, -7, 99, np.inf, np.nan])).tolist() == [1, 1, 3, 3, 0]

    def test_a_column_of_nothing_has_one_bucket(self) -> None:
        assert Buckets.of("x", np.array([np.nan]), 4).encode(np.array([3.0, np.nan])).tolist() == [1, 0]


class TestFeature:
    def test_an_unseen_value_and_a_null_are_unknown(self) -> None:
        feature = Feature.of("country", pa.chunked_array([["DE", "FR", "DE", None]]), 10)
        assert feature.encode(pa.chunked_array([["FR", "DE", "BR", None]])).tolist() == [2, 1, 0, 0]

    def test_rare_values_are_unknown_where_there_are_too_many(self) -> None:
        feature = Feature.of("city", pa.chunked_array([["a", "a", "b", "b", "c"]]), 2)
        assert feature.values == ("a", "b")

    def test_numbers_are_categories_where_few_and_buckets_where_many(self) -> None:
        few, many = pa.chunked_array([[1, 2, 1]]), pa.chunked_array([list(range(100))])
        assert Feature.of("kind", few, 8).values == ("1", "2")
        assert Feature.of("age", many, 8).num_codes == 9

    @pytest.mark.parametrize(
        ("column", "said"), [(pa.chunked_array([[["a"]]]), "lists"), (pa.chunked_array([[None]]), "empty")]
    )
    def test_what_is_no_feature_is_refused(self, column: pa.ChunkedArray, said: str) -> None:
        with pytest.raises(InputError, match=f"'tags' .*{said}"):
            Feature.of("tags", column, 4)


class TestSchema:
    def test_it_survives_json(self, shop: PreparedData) -> None:
        schema = make(shop, context=("taste", "age"))
        assert Schema.model_validate_json(schema.model_dump_json()) == schema

    def test_buckets_come_from_training_events_alone(self, tmp_path: Path) -> None:
        late = write_ranking(tmp_path / "late")
        held_out = np.setdiff1d(np.arange(late.num_events), training_events(late))

        def raise_later(events: dict[str, np.ndarray]) -> None:
            events["strength_rating"][held_out] = 1e6

        changed = write_ranking(tmp_path / "changed", change=raise_later)
        assert make(changed) == make(late)

    def test_inputs_line_up_with_events_and_users(self, shop: PreparedData) -> None:
        inputs = Inputs.of(make(shop, context=("taste", "age")), shop)
        assert inputs.context is not None
        assert [len(column) for column in inputs.strengths] == [shop.num_events]
        assert inputs.context[:4, 0].tolist() == [1, 2, 1, 2]
        assert inputs.context[3, 1] == 0, "an age nobody knows"

    def test_a_log_without_the_columns_is_unknown_throughout(self, shop: PreparedData) -> None:
        schema = Schema(strengths=(Buckets(name="dwell"),), context=(Feature(name="tribe", values=("x",)),))
        inputs = Inputs.of(schema, shop)
        assert np.isnan(inputs.strengths[0]).all()
        assert inputs.context is not None
        assert not inputs.context.any()

    def test_an_unknown_feature_is_refused_with_those_there_are(self, shop: PreparedData) -> None:
        with pytest.raises(InputError, match=r"no feature 'tast' \(did you mean 'taste'\?\); there are: taste, age"):
            make(shop, context=("tast",))

    def test_nothing_to_read_is_refused(self, shop: PreparedData) -> None:
        plain = shop.meta.model_copy(update={"actions": (), "strengths": ()})
        with pytest.raises(InputError, match="no actions and no strengths"):
            make(PreparedData(None, plain, shop.events, shop.users, shop.item_table))

    def test_bits_without_a_name_are_refused(self, tmp_path: Path) -> None:
        def stray(events: dict[str, np.ndarray]) -> None:
            events["action"][5] |= 1 << 7

        with pytest.raises(InputError, match=r"action bit 7 but meta.json names 2 actions \(like, buy\)"):
            make(write_ranking(tmp_path / "stray", change=stray))

    def test_more_actions_than_bits_are_refused(self, shop: PreparedData) -> None:
        names = tuple(f"a{i}" for i in range(63))
        crowded = PreparedData(
            None, shop.meta.model_copy(update={"actions": names}), shop.events, shop.users, shop.item_table
        )
        with pytest.raises(InputError, match="63 actions, and at most 62 fit"):
            make(crowded)
