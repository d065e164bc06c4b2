"""From external ids to indices, with a helpful error for the ones nobody knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longview.data.dataset import IdMap
from longview.errors import InputError, suggestion

NEAR = 2_000  # ids compared for a suggestion


def known_index(
    ids: IdMap, names: Sequence[Any], kind: str, titles: pa.ChunkedArray | None = None
) -> npt.NDArray[np.int64]:
    """Return the index of each of `names`.

    Raises:
        InputError: one text in place of a list; unknown names, and the message has the nearest known id, or the id of
            an item of that title.
    """
    if isinstance(names, str):
        raise InputError(f"{kind}s are a list of ids, for example [{names!r}]")
    found = ids.index(names)
    unknown = [str(names[at]) for at in np.flatnonzero(found < 0).tolist()]
    if unknown:
        stranger = "; for somebody it does not know, give a sequence of items" if kind == "user" else ""
        more = f" (and {len(set(unknown)) - 1} more)" if len(set(unknown)) > 1 else ""
        hint = _by_title(ids, unknown[0], titles) or suggestion(unknown[0], _near(ids, unknown[0]))
        raise InputError(
            f"unknown {kind} {unknown[0]!r}{hint}{more}; the model knows {len(ids):,} {kind}s by external id{stranger}"
        )
    return found


def _near(ids: IdMap, name: str) -> list[str]:
    """Return a few ids worth comparing: those that share the longest beginning with `name`."""
    for length in range(len(name) - 1, 0, -1):
        near = ids.ids.filter(pc.starts_with(ids.ids, name[:length]))
        if len(near):
            return [str(x) for x in near.slice(0, NEAR).to_pylist()]
    return [str(x) for x in ids.ids.slice(0, NEAR).to_pylist()]


def _by_title(ids: IdMap, name: str, titles: pa.ChunkedArray | None) -> str:
    if titles is None or len(name) < 3:
        return ""
    rows = np.flatnonzero(pc.match_substring(titles, name, ignore_case=True).fill_null(False))
    if not len(rows):
        return ""
    return f" (item {ids.ids[rows[0]].as_py()!r} has the title {titles[int(rows[0])].as_py()!r}: give the id)"
