"""Which sequences go into which batch: so many of them, or as many as fit a number of tokens."""

from __future__ import annotations

from longview.data.share import Rows
from longview.errors import InputError


def check_size(batch_size: int | None, token_budget: int | None) -> None:
    """Refuse batches of no size.

    Raises:
        InputError: neither a number of sequences nor one of tokens.
    """
    if batch_size is None and token_budget is None:
        raise InputError("batches need a batch_size or a token_budget")


def batch_groups(order: Rows, lengths: Rows, batch_size: int | None, token_budget: int | None) -> list[Rows]:
    """Return `order` (n,), the numbers of sequences of `lengths` (n,), in runs of one batch each.

    A batch has `batch_size` sequences, or where that is None as many as fit in `token_budget` (at least one).
    """
    if batch_size is not None:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    groups, begin, filled = [], 0, 0
    for at, length in enumerate(lengths.tolist()):
        if filled and filled + length > (token_budget or 0):
            groups.append(order[begin:at])
            begin, filled = at, 0
        filled += length
    return [*groups, order[begin:]]
