"""Action columns to bits."""

from __future__ import annotations

import polars as pl
import pytest

from longview.data.actions import action_bits, bits_of
from longview.data.ids import Dictionary
from longview.errors import InputError


def columns_to_bits(columns: dict[str, list[str | None]]) -> tuple[tuple[str, ...], list[list[int]]]:
    """Return the names and, for each column, the bits of every row."""
    dictionaries, codes = [], []
    for values in columns.values():
        dictionaries.append(Dictionary())
        codes.append(dictionaries[-1].encode(pl.Series(values, dtype=pl.String)))
    names, tables = action_bits(list(columns), dictionaries)
    return names, [
        [int(table[min(code, len(table) - 1)]) for code in column] for column, table in zip(codes, tables, strict=True)
    ]


def test_a_column_of_names_is_one_action_a_name() -> None:
    assert columns_to_bits({"event": ["view", "buy", None, "view"]}) == (("buy", "view"), [[2, 1, 0, 2]])


def test_a_column_of_zeros_and_ones_is_one_action() -> None:
    names, bits = columns_to_bits({"like": ["1", "0", None], "buy": ["true", "False", "true"]})
    assert (names, bits) == (("like", "buy"), [[1, 0, 0], [2, 0, 2]])


def test_numbers_and_names_used_twice_carry_their_column() -> None:
    assert columns_to_bits({"kind": ["10", "9"]})[0] == ("kind=9", "kind=10")
    assert columns_to_bits({"a": ["x", "y"], "b": ["y", "z"]})[0] == ("x", "y", "b=y", "b=z")


def test_more_actions_than_bits_are_refused_with_a_remedy() -> None:
    assert len(columns_to_bits({"event": [f"e{n}" for n in range(62)]})[0]) == 62
    with pytest.raises(InputError, match=r"63 different values.*at most 62.*--strength event"):
        columns_to_bits({"event": [f"e{n}" for n in range(63)]})
    flags = {f"f{n}": ["0", "1"] for n in range(70)}
    assert len(columns_to_bits(dict(list(flags.items())[:62]))[0]) == 62
    with pytest.raises(InputError, match=r"'f62' is one action too many; at most 62.*--ignore"):
        columns_to_bits(flags)


def test_names_of_actions_are_a_mask() -> None:
    assert bits_of([], ["view", "buy"], "loss.actions") == 0
    assert bits_of(["buy", "view", "buy"], ["view", "click", "buy"], "loss.actions") == 0b101


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (["view", "buy"], r"loss.actions: no action 'bye' \(did you mean 'buy'\?\); the data has view, buy"),
        ([], r"loss.actions: no action 'bye'; the data has no actions \(prepare --action\)"),
    ],
)
def test_an_unknown_action_is_named_with_what_there_is(known: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bits_of(["bye"], known, "loss.actions")
