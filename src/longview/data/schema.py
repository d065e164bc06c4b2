"""What a model reads of an event and of a user beyond the item: the layout that training fixes and serving keeps.

A model is built for a number of actions, for buckets of each strength and for the values of each user feature. These
come from the data set it is trained on and are kept with the run, so that another log is read the same way: what was
never seen is code 0, "unknown".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from longview.config import Config
from longview.data.actions import MAX_ACTIONS
from longview.data.dataset import PreparedData
from longview.errors import InputError, suggestion

Floats = npt.NDArray[np.floating[Any]]
Codes = npt.NDArray[np.int64]

SAMPLE = 1 << 20  # values that quantiles are taken of
RESERVED = ("id", "offset", "length")  # columns of users.arrow that are no features


class Buckets(Config):
    """Numbers to codes: 0 where there is none (NaN), else 1 + the number of `boundaries` at or below the value.

    Values beyond those of training share the first or the last bucket.
    """

    name: str
    boundaries: tuple[float, ...] = ()

    @property
    def num_codes(self) -> int:
        return len(self.boundaries) + 2

    def encode(self, values: Floats) -> Codes:
        """Return the code of each of `values` (n,), int64.

        Example:
            >>> Buckets(name="rating", boundaries=(2.0, 4.0)).encode(np.array([np.nan, -9.0, 2.0, 4.0, 99.0])).tolist()
            [0, 1, 2, 3, 3]
        """
        values = np.asarray(values, np.float64)
        codes = 1 + np.searchsorted(np.asarray(self.boundaries, np.float64), values, side="right")
        return np.where(np.isnan(values), 0, codes).astype(np.int64)

    @classmethod
    def of(cls, name: str, values: Floats, count: int) -> Buckets:
        """Return at most `count` buckets of about equally many of `values`; few distinct values keep one each."""
        known = np.asarray(values[:: max(1, len(values) // SAMPLE)], np.float64)
        known = known[np.isfinite(known)]
        distinct = np.unique(known)
        if len(distinct) > count:
            distinct = np.unique(np.quantile(known, np.arange(count) / count, method="higher"))
        return cls(name=name, boundaries=tuple(distinct[1:].tolist()))


class Feature(Config):
    """A column of users: the `values` it takes, code 1 first, or `buckets` of its numbers; code 0 is unknown."""

    name: str
    values: tuple[str, ...] = ()
    buckets: Buckets | None = None

    @property
    def num_codes(self) -> int:
        return len(self.values) + 1 if self.buckets is None else self.buckets.num_codes

    def encode(self, column: pa.ChunkedArray) -> Codes:
        """Return the code of each cell, (n,) int64: 0 for a null and for a value that training never saw."""
        if self.buckets is not None:
            return self.buckets.encode(_floats(column))
        place = {value: code for code, value in enumerate(self.values, 1)}
        return np.fromiter(
            (0 if value is None else place.get(value, 0) for value in _texts(column)), np.int64, len(column)
        )

    @classmethod
    def of(cls, name: str, column: pa.ChunkedArray, count: int) -> Feature:
        """Return the feature of `column`: its `count` most frequent values, or as many buckets of its numbers.

        Numbers of few distinct values are categories.

        Raises:
            InputError: a column of lists, or of nothing but nulls.
        """
        if pa.types.is_list(column.type) or column.null_count == len(column):
            what = "holds lists" if pa.types.is_list(column.type) else "is empty"
            raise InputError(f"user feature {name!r} {what}; a context feature is one text or number a user")
        if _is_number(column.type) and len(column.unique()) > count:
            return cls(name=name, buckets=Buckets.of(name, _floats(column), count))
        texts, counts = np.unique([text for text in _texts(column) if text is not None], return_counts=True)
        frequent = np.argsort(-counts, kind="stable")[:count]
        return cls(name=name, values=tuple(sorted(texts[frequent].tolist())))


class Schema(Config):
    """`actions` by name, bit 0 first; buckets of `strengths`; features of users that are `context` tokens."""

    actions: tuple[str, ...] = Field(default=(), max_length=MAX_ACTIONS)
    strengths: tuple[Buckets, ...] = ()
    context: tuple[Feature, ...] = ()

    @classmethod
    def of(
        cls,
        data: PreparedData,
        *,
        actions: bool,
        strength_buckets: int,
        context: Sequence[str],
        context_buckets: int,
    ) -> Schema:
        """Return the schema of a model that reads the `actions` and strengths of `data` and these `context` columns.

        Buckets of strengths come from training events.

        Raises:
            InputError: actions are wanted but the data has none, more than fit, or bits without a name; a context
                column that is not there.
        """
        known = [name for name in data.users.column_names if name not in RESERVED]
        for name in context:
            if name not in known:
                raise InputError(
                    f"{data.meta.name}: users have no feature {name!r}{suggestion(name, known)}; "
                    f"there are: {', '.join(known) or 'none (prepare with --users FILE)'}"
                )
        features = tuple(Feature.of(name, data.users[name], context_buckets) for name in context)
        if not actions:
            return cls(context=features)
        _check_actions(data)
        rows = training_events(data) if data.meta.strengths else np.empty(0, np.int64)
        strengths = (Buckets.of(name, data.strength(name)[rows], strength_buckets) for name in data.meta.strengths)
        return cls(actions=data.meta.actions, strengths=tuple(strengths), context=features)


@dataclass(frozen=True)
class Inputs:
    """What a `Schema` reads: `strengths` (num_events,) each, and `context` codes (num_users, features) or None."""

    strengths: tuple[npt.NDArray[np.float32], ...] = ()
    context: Codes | None = None

    @classmethod
    def of(cls, schema: Schema, data: PreparedData) -> Inputs:
        """Read `data` as `schema` says; a column the data lacks is unknown throughout."""
        missing = np.full(1, np.nan, np.float32)
        strengths = (
            data.strength(s.name) if s.name in data.meta.strengths else np.broadcast_to(missing, data.num_events)
            for s in schema.strengths
        )
        users, nobody = data.users, np.zeros(data.num_users, np.int64)
        codes = [f.encode(users[f.name]) if f.name in users.column_names else nobody for f in schema.context]
        return cls(tuple(strengths), np.stack(codes, axis=1) if codes else None)


def training_events(data: PreparedData) -> Codes:
    """Return the event rows that train, in user order, (n,) int64."""
    start, end = data.offsets[:-1], data.split.train_end
    lengths = end - start
    rows: Codes = np.arange(lengths.sum()) + np.repeat(start - (np.cumsum(lengths) - lengths), lengths)
    return rows


def _check_actions(data: PreparedData) -> None:
    names = data.meta.actions
    if not names and not data.meta.strengths:
        raise InputError(
            f"{data.meta.name}: events have no actions and no strengths to read; set model.embedding.actions none, or "
            "prepare the log with --action or --strength"
        )
    if len(names) > MAX_ACTIONS:
        raise InputError(
            f"{data.meta.name}: {len(names)} actions, and at most {MAX_ACTIONS} fit in the bits of an event"
        )
    used = 0 if data.actions is None else int(np.bitwise_or.reduce(data.actions, initial=0))
    if used < 0 or used >> len(names):
        raise InputError(
            f"{data.meta.name}: events carry action bit {used.bit_length() - 1 if used > 0 else 63} but meta.json "
            f"names {len(names)} actions ({', '.join(names)}); prepare the data again"
        )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64) if _is_number(column.type) \
        else np.full(len(column), np.nan)  # fmt: skip


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    return [None if value is None else str(value) for value in column.to_pylist()]
