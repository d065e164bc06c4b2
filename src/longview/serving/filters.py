"""Which items may be recommended: allow and deny lists, and caps per category."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from longview.data.dataset import IdMap
from longview.errors import InputError, suggestion

IdList = Sequence[str] | Path | str


def read_ids(source: IdList, name: str) -> list[str]:
    """Return external ids: those of a sequence, or the lines of a file (one id a line, blank lines skipped).

    Raises:
        InputError: the file is missing or not UTF-8 text; `name` says which list it was.
    """
    if not isinstance(source, str | Path):
        return [str(item) for item in source]
    try:
        text = Path(source).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{name} list {source}: cannot be read ({error.strerror}); give one item id a line") from None
    except UnicodeDecodeError:
        raise InputError(f"{name} list {source}: not UTF-8 text; give one item id a line") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def allowed_items(items: IdMap, allow: IdList | None, deny: IdList | None) -> Tensor | None:
    """Return (num_items,) bool, true where an item may be recommended, or None where all may.

    Ids that the catalogue lacks are ignored with a warning: such lists usually come from another system.

    Raises:
        InputError: an item in both lists, an allow list without any known item, or nothing left to recommend.
    """
    if allow is None and deny is None:
        return None
    allowed = None if allow is None else _known(items, read_ids(allow, "allow"), "allow")
    denied = np.empty(0, np.int64) if deny is None else _known(items, read_ids(deny, "deny"), "deny")
    if allowed is not None:
        both = np.intersect1d(allowed, denied)
        if len(both):
            examples = ", ".join(repr(x) for x in items.external(both[:3]).to_pylist())
            raise InputError(
                f"{len(both)} item(s) stand in both the allow and the deny list, for example {examples}: "
                "take them out of one"
            )
        if not len(allowed):
            raise InputError("the allow list names no item of the catalogue, so nothing can be recommended")
    mask = np.full(len(items), allowed is None)
    mask[allowed if allowed is not None else slice(0)] = True
    mask[denied] = False
    if not mask.any():
        raise InputError("the deny list covers the whole catalogue, so nothing can be recommended")
    return torch.from_numpy(mask)


def _known(items: IdMap, names: list[str], kind: str) -> npt.NDArray[np.int64]:
    found = items.index(names)
    unknown = np.flatnonzero(found < 0)
    if len(unknown):
        examples = ", ".join(repr(names[at]) for at in unknown[:3])
        warnings.warn(
            f"{len(unknown)} of {len(names)} ids of the {kind} list are not in the catalogue and are ignored, "
            f"for example {examples}",
            stacklevel=5,
        )
    return np.unique(found[found >= 0])


@dataclass(frozen=True)
class Categories:
    """The categories of every item: `codes` (num_items, most) int64, filled up with `count`, which is no category."""

    codes: Tensor
    count: int

    @classmethod
    def of(cls, items: pa.Table, column: str) -> Categories:
        """Read text, number or list-of-text column `column`; an item without a category is never capped.

        Raises:
            InputError: no such column.
        """
        if column not in items.column_names:
            features = [name for name in items.column_names if name not in ("id", "title")]
            raise InputError(
                f"the catalogue has no column {column!r}{suggestion(column, features)}; "
                + (f"its columns: {', '.join(features)}" if features else "it was prepared without item features")
            )
        values = items[column].combine_chunks()
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            owner, flat = pc.list_parent_indices(values).to_numpy(), pc.list_flatten(values)
        else:
            owner, flat = np.arange(len(values)), values
        codes = np.asarray(pc.dictionary_encode(flat).indices.fill_null(-1), np.int64)
        owner, codes = owner[codes >= 0], codes[codes >= 0]
        count = int(codes.max(initial=-1)) + 1
        lengths = np.bincount(owner, minlength=len(values))
        place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        table = np.full((len(values), max(1, int(lengths.max(initial=0)))), count)
        table[owner, place] = codes
        return cls(torch.from_numpy(table), count)


def keep_within_caps(candidates: Tensor, categories: Categories, cap: int, k: int) -> Tensor:
    """Return which `candidates` stay when each row is read best first and no category is taken more than `cap` times.

    An item of several categories needs room in each of them. A row stops at `k` kept items.

    Args:
        candidates: (b, fetched) int64 item indices, best first, −1 where there is none.

    Returns:
        (b, fetched) bool.
    """
    codes = torch.cat([categories.codes, torch.full((1, categories.codes.shape[1]), categories.count)])
    codes = codes.to(candidates.device)
    rows = torch.arange(candidates.shape[0], device=candidates.device)[:, None]
    taken = torch.zeros(candidates.shape[0], categories.count + 1, dtype=torch.int32, device=candidates.device)
    total = torch.zeros(candidates.shape[0], dtype=torch.int64, device=candidates.device)
    kept = torch.zeros_like(candidates, dtype=torch.bool)
    for place in range(candidates.shape[1]):
        item = candidates[:, place]
        here = codes[item]  # item −1 reads the last row, which has no category
        fits = (taken[rows, here] < cap) | (here == categories.count)
        kept[:, place] = fits.all(1) & (item >= 0) & (total < k)
        taken[rows, here] += kept[:, place : place + 1].int()
        total += kept[:, place]
        if bool((total >= k).all()):
            break
    return kept
