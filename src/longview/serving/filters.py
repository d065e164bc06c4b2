"""Which items may be recommended: allow and deny lists."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longview.data.dataset import IdMap
from longview.errors import InputError

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
