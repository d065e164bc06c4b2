"""External ids: text to codes over many batches, and numbers in a documented order."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longview.data.ids import NO_CODE, Dictionary, as_text, number_in_order, to_arrow_ids

names = st.text(max_size=4)


@given(st.lists(st.lists(st.none() | names, max_size=10), max_size=6))
def test_codes_are_the_same_in_every_batch(batches: list[list[str | None]]) -> None:
    dictionary = Dictionary()
    codes = [dictionary.encode(pl.Series(batch, dtype=pl.String)).tolist() for batch in batches]
    values = dictionary.values().to_list()
    assert [[None if c == NO_CODE else values[c] for c in batch] for batch in codes] == batches
    assert len(values) == len(set(values)) == len(dictionary)


@pytest.mark.parametrize(
    ("ids", "ordered"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["7", "007", "08"], ["007", "7", "08"]),
        (["b", "B", "ä", "a,\n"], ["B", "a,\n", "b", "ä"]),
        (["9" * 30, "1"], ["1", "9" * 30]),
        ([], []),
    ],
)
def test_numbers_in_order_of_value_and_text_in_order_of_code_points(ids: list[str], ordered: list[str]) -> None:
    series = pl.Series(ids, dtype=pl.String)
    assert series.gather(number_in_order(series)).to_list() == ordered


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (pl.Series([42, None]), ["42", None]),
        (pl.Series([42.0, float("nan")]), ["42", None]),
        (pl.Series([42.5, 1.0]), ["42.5", "1.0"]),
        (pl.Series(["a", "b"], dtype=pl.Categorical), ["a", "b"]),
        (pl.Series([True]), ["true"]),
        (pl.Series([b"abc"]), ["abc"]),
        (pl.Series([2**63 + 5], dtype=pl.UInt64), ["9223372036854775813"]),
    ],
)
def test_ids_of_any_type_become_text(values: pl.Series, text: list[str | None]) -> None:
    assert as_text(values).to_list() == text


def test_ids_go_to_disk_as_plain_strings() -> None:
    array = to_arrow_ids(pl.Series(["é", "a,b\n"]))
    assert str(array.type) == "string"
    assert array.to_pylist() == ["é", "a,b\n"]
