"""Small logs for the tests of this room."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from longview.data import PreparedData

T0 = 1_600_000_000  # seconds

LOG = """user_id,item_id,timestamp
u1,a,1600000000
u1,b,1600000010
u1,c,1600000020
u2,a,1600000005
u2,c,1600000015
u2,b,1600000025
u3,b,1600000030
u3,a,1600000040
"""


def write(path: Path, text: str | bytes) -> Path:
    """Write `text` to `path`."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def histories(data: PreparedData) -> dict[str, list[str]]:
    """Return the items of every user, in order, by external ids."""
    names = data.item_ids.external(data.items).to_pylist()
    users = data.user_ids.ids.to_pylist()
    return {user: names[data.offsets[n] : data.offsets[n + 1]] for n, user in enumerate(users)}
