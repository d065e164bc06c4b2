"""A batch's moments, a drift policy's next state and the batch standardised by it, in two launches on a GPU.

In plain torch (`metric_learning.observe`) the same takes some seventy operations on vectors.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from longview.ops.kernels import begins_early, on_device_of, padded_dim, why_no_triton
from longview.ops.launch import Recipe, Step

MAX_WIDTH = 2048  # the vectors of the state that a program holds in registers
SUM_ROWS, SUM_DIMS = 32, 16  # anchors and dimensions of a program that sums
STORED = 4096  # values of the batch that a program standardises


class Filter(NamedTuple):
    """What the kernels compute; the names are those of the policies in `metric_learning`.

    kind: `xbn`, `axbn` or `moving-average`, whose weight of the newest batch is `rate`; with `learned`, `rate` is that
    of the newest innovation. anchor: which moments the rows are standardised by, `memory` for none. squared: the
    variance is filtered. shared: one gain. sampled: the noise follows from the classes; weighed: both noises follow
    from the innovations; otherwise it is `noise`. floor: least standard deviation.
    """

    kind: Literal["xbn", "axbn", "moving-average"]
    anchor: Literal["state", "batch", "memory"]
    floor: float
    rate: float = 0.0
    noise: float = 0.0
    squared: bool = False
    shared: bool = False
    sampled: bool = False
    learned: bool = False
    weighed: bool = False


class Filtered(NamedTuple):
    """moments, error, gain, own, surprise: (2, d). evidence: (2, 2, d). drift: (2, 1). stored: (b, d).

    surprise and evidence are None but where they are `weighed`; stored is None for the anchor `memory`. kept: what all
    but drift and stored are views of. sums: what one launch leaves to the next, as bytes. recipe: the launches that
    write all of it, for batches of this shape.
    """

    moments: Tensor
    error: Tensor
    gain: Tensor
    own: Tensor
    surprise: Tensor | None
    evidence: Tensor | None
    drift: Tensor
    stored: Tensor | None
    kept: Tensor
    sums: Tensor
    recipe: Recipe
    shape: torch.Size


class Before(NamedTuple):
    """The state before a batch: moments, error, gain, surprise (2, d); evidence (2, 2, d); drift (2, 1). float32."""

    moments: Tensor
    error: Tensor
    gain: Tensor
    surprise: Tensor
    evidence: Tensor
    drift: Tensor


def why_not(values: Tensor) -> str | None:
    """Return why the kernels cannot serve these rows (b, d), in a sentence, or None where they can."""
    if values.dtype != torch.float32:
        return f"the kernels compute in float32, and the moments are {values.dtype}"
    if values.shape[1] > MAX_WIDTH:
        return f"the kernels take rows of up to {MAX_WIDTH} values, got {values.shape[1]}"
    return why_no_triton(values.device)


@functools.lru_cache(maxsize=64)
def recipe_for(setting: Filter, b: int, width: int, storage: torch.dtype, early: bool) -> Recipe:
    """Return both launches for batches (b, d) whose rows are stored in dtype `storage`; kernels are compiled for it.

    With `early` the second begins while the first ends.
    """
    from longview.ops.drift_filter import triton_filter as kernels

    padded = padded_dim(width)
    blocks = -(-b // SUM_ROWS) if setting.sampled else 1
    rows = max(1, STORED // padded)
    first = Step(
        kernels.sum_batch, (blocks, -(-width // SUM_DIMS)), ("values", "labels", "kept", "sums"), (b, setting.floor),
        {"SAMPLED": setting.sampled, "EARLY": early, "ROWS": SUM_ROWS, "DIMS": SUM_DIMS, "WIDTH": width},
    )  # fmt: skip
    last = Step(
        kernels.filter_moments, (1 if setting.anchor == "memory" else -(-b // rows), 1),
        ("values", "sums", *Before._fields, "kept", "kept_drift", "stored"), (b, blocks, setting.noise, setting.rate),
        {"KIND": setting.kind, "ANCHOR": setting.anchor, "SQUARED": setting.squared, "SHARED": setting.shared,
         "SAMPLED": setting.sampled, "LEARNED": setting.learned, "WEIGHED": setting.weighed,
         "EARLY": early, "ROWS": rows, "WIDTH": width, "PADDED": padded},
        **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    sums = {"sums": (torch.float32, blocks * (2 * width + 1))}
    return Recipe(("values", "labels", *Before._fields, "kept", "kept_drift", "stored"), sums, [first, last])


def room_for(setting: Filter, values: Tensor, storage: torch.dtype) -> Filtered:
    """Return tensors for what a batch like `values` (b, d) makes, the rows to be stored in dtype `storage`."""
    b, width = values.shape
    recipe = recipe_for(setting, b, width, storage, begins_early(values.device))
    kept = values.new_empty(7 if setting.weighed else 4, 2, width)
    moments, error, gain, own, *more = kept.unbind()
    surprise, evidence = (more[0], kept[5:]) if more else (None, None)
    drift = values.new_empty(2, 1)
    stored = None if setting.anchor == "memory" else torch.empty(values.shape, dtype=storage, device=values.device)
    sums, shape = recipe.room(values.device), values.shape
    return Filtered(moments, error, gain, own, surprise, evidence, drift, stored, kept, sums, recipe, shape)


def filtered(values: Tensor, labels: Tensor, state: Before, room: Filtered) -> None:
    """Write what a batch makes of the state into `room`, which shares nothing with it. Bits do not depend on the run.

    Args:
        values: (b, d) float32 with b > 0. labels: (b,) int64.
        state: every one but the first, which is the batch's.
        room: of `room_for`.
    """
    values, labels = values.contiguous(), labels.contiguous()
    before = [part.contiguous() for part in state]
    stored = values if room.stored is None else room.stored
    with on_device_of(values):
        room.recipe.run(room.sums, (values, labels, *before, room.kept, room.drift, stored))
