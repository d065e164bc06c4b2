"""The benchmark of `prepare` measures the command itself, on a log that is the same for everybody."""

from __future__ import annotations

import pytest

from longview.bench.prepare import _pieces, bench_prepare
from longview.errors import InputError


def test_the_log_depends_on_the_seed_alone() -> None:
    first, again, other = (next(_pieces(2000, seed)) for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)
    assert first["timestamp"].to_pylist() == sorted(first["timestamp"].to_pylist())


def test_both_formats_give_one_data_set_and_its_cost() -> None:
    result = bench_prepare(rows=2000)
    csv, parquet = result["runs"]["csv"], result["runs"]["parquet"]
    assert csv["fingerprint"] == parquet["fingerprint"]
    assert csv["events"] == 2000
    assert 0 < parquet["peak_gib"] < 3
    assert result["csv_seconds"] == csv["seconds"] > 0


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1,000"):
        bench_prepare(rows=10)
