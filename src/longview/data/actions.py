"""Action columns to bits: a 0/1 column is one action, a column of names is one action a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from longview.data.columns import FLAG_VALUES
from longview.data.ids import Dictionary, number_in_order
from longview.errors import InputError, suggestion

if TYPE_CHECKING:
    import polars as pl

MAX_ACTIONS = 62
SET = ("1", "1.0", "true")


def action_bits(
    columns: Sequence[str], dictionaries: Sequence[Dictionary]
) -> tuple[tuple[str, ...], list[npt.NDArray[np.int64]]]:
    """Return the names of all actions, bit 0 first, and for each column the bits of its codes (codes + 1,) int64.

    The last entry is that of a missing value: no bit. Names of one column are in order of their text.

    Raises:
        InputError: more actions than an int64 has bits.
    """
    names: list[str] = []
    tables = []
    for column, dictionary in zip(columns, dictionaries, strict=True):
        values = dictionary.values()
        bits = np.zeros(len(values) + 1, np.int64)
        if set(values.str.to_lowercase()) <= FLAG_VALUES:
            if len(names) == MAX_ACTIONS:
                raise InputError(
                    f"action column {column!r} is one action too many; at most {MAX_ACTIONS} fit. Name fewer with "
                    f"--action, or leave some out with --ignore"
                )
            bits[:-1] = [(value.lower() in SET) << len(names) for value in values]
            names.append(column)
        elif len(names) + len(values) > MAX_ACTIONS:
            raise InputError(
                f"action column {column!r} has {len(values):,} different values (such as {values[0]!r}); at most "
                f"{MAX_ACTIONS} actions fit. Is it a strength (--strength {column}), or no action (--ignore {column})?"
            )
        else:
            order = number_in_order(values)
            bits[order] = np.int64(1) << np.arange(len(names), len(names) + len(values))
            names += _names(column, values.gather(order), names)
        tables.append(bits)
    return tuple(names), tables


def bits_of(actions: Sequence[int | str], known: Sequence[str], setting: str, also: str = "") -> int:
    """Return the bitmask of `actions`, by name or bit number; `known` are those of a data set, bit 0 first.

    Example:
        >>> bits_of(["buy", "view"], ["view", "click", "buy"], "loss.actions")
        5

    Raises:
        InputError: an action that is not known; the message says which `setting` asks for it, what there is, and what
            the setting takes `also`.
    """
    bits = 0
    for action in actions:
        if isinstance(action, str) and action not in known:
            have = f"the data has {', '.join(known)}" if known else "the data has no actions (prepare --action)"
            raise InputError(f"{setting}: no action {action!r}{suggestion(action, known)}; {have}{also}")
        bits |= 1 << (action if isinstance(action, int) else list(known).index(action))
    return bits


def _names(column: str, values: pl.Series, taken: Sequence[str]) -> list[str]:
    plain = values.to_list()
    numeric = bool(values.str.contains(r"^-?[\d.]+$").any())
    return [f"{column}={value}" for value in plain] if numeric or set(plain) & set(taken) else plain
