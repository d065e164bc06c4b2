"""What a batch of labelled embeddings must be, said the same way by memories and losses."""

from __future__ import annotations

import torch
from torch import Tensor

from longview.errors import InputError


def check_batch(
    embeddings: Tensor, labels: Tensor, sample_ids: Tensor | None = None, *, width: int | None = None, least: int = 1
) -> None:
    """Check shapes and dtypes of a batch of `least` rows or more; reads no values.

    Raises:
        InputError: not (b, d) floating point with labels and ids (b,) int64; the message gives both and the remedy.
    """
    if not isinstance(embeddings, Tensor):
        raise InputError(f"embeddings must be a tensor (batch, width), got {type(embeddings).__name__}")
    if embeddings.dim() != 2 or not embeddings.is_floating_point() or len(embeddings) < least:
        raise InputError(
            f"embeddings must be (batch, width) floating point with {least} rows or more, got {of(embeddings)}"
        )
    if width is not None and embeddings.shape[1] != width:
        raise InputError(f"embeddings of width {embeddings.shape[1]} do not fit a memory of width {width}")
    check_labels(labels, len(embeddings))
    if sample_ids is not None and (
        not isinstance(sample_ids, Tensor) or sample_ids.shape != labels.shape or sample_ids.dtype != torch.int64
    ):
        raise InputError(f"sample_ids must be ({len(labels)},) int64, one a row, got {of(sample_ids)}")
    for name, numbers in (("labels", labels), ("sample_ids", sample_ids)):
        if numbers is not None and numbers.device != embeddings.device:
            raise InputError(
                f"{name} are on {numbers.device} and the embeddings on {embeddings.device}: move them there"
            )


def check_labels(labels: Tensor, rows: int) -> None:
    """Check that `labels` is (rows,) int64.

    Raises:
        InputError: names of classes, floats, or another number of labels than of rows.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(
            f"labels must be an int64 tensor of class numbers, got {of(labels)}; "
            "number names of classes first, for example numpy.unique(names, return_inverse=True)"
        )
    if labels.shape != (rows,) or labels.dtype != torch.int64:
        raise InputError(f"labels must be ({rows},) int64, one an embedding, got {of(labels)}")


def check_values(values: Tensor, numbers: Tensor) -> None:
    """Check the values of a batch, (b, d), and its labels and sample ids, (2, b); waits for the device once.

    Raises:
        InputError: NaN or infinite embeddings, negative labels or ids.
    """
    # NaN or infinity times 0 is NaN, which is not 0 or more either.
    if (numbers.amin() + (values * 0).sum()).item() >= 0:
        return
    labels, ids = (numbers < 0).unbind()
    for what, where, remedy in (
        ("embeddings are NaN or infinite", ~values.isfinite().all(1), "lower the learning rate or clip gradients; "
         "nothing was stored"),
        ("labels are negative", labels, "a missing label is no class: leave those samples out"),
        ("sample_ids are negative", ids, "number samples from 0"),
    ):  # fmt: skip
        rows = where.nonzero().flatten().tolist()
        if rows:
            shown = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
            raise InputError(f"{what} in {len(rows)} of {len(values)} rows of the batch ({shown}): {remedy}")


def of(value: object) -> str:
    """Return shape and dtype of a tensor, or the type of anything else."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
