"""Semi-local pointwise attention: one operation for training, prefill, update and candidate scoring.

    from longview.ops.attention import MaskSpec, semi_local_attention

`mask.py` says who sees whom, `reference.py` is the definition, `banded.py` the CPU path, `triton_attention.py` the
GPU's, `dense.py` the padded path for what neither does; this file validates and dispatches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from longview.errors import InputError, suggestion
from longview.ops.attention.bias import RelativeBias
from longview.ops.attention.mask import MaskSpec
from longview.ops.attention.triton_tuning import Blocks, ChosenBlocks
from longview.ops.kernels import why_no_triton

__all__ = [
    "Blocks",
    "ChosenBlocks",
    "MaskSpec",
    "RelativeBias",
    "available_backends",
    "newest_rows_attention",
    "semi_local_attention",
    "why_off",
]

Backend = Literal["reference", "dense", "cpu", "triton"]
BACKENDS = ("reference", "dense", "cpu", "triton")
WIDEST = 256  # head dimension of the kernels
FURTHEST = 4096  # distances of a bias table: each program of the backward kernel sums into one of its own


def semi_local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    mask: MaskSpec,
    *,
    alpha: float | None = None,
    scale_length: float,
    context_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    bias: RelativeBias | None = None,
    max_length: int | None = None,
    backend: Backend | None = None,
    blocks: ChosenBlocks | None = None,
) -> Tensor:
    """Return pointwise attention over the keys each row sees; no softmax, no normaliser but a constant.

        z_ij = alpha <q_i, k_j> + bias_ij        out_i = 1/scale_length sum_j M_ij silu(z_ij) v_j

    Args:
        q, k: (total, heads, d_qk). v: (total, heads, d_v), of the same floating dtype. Scores and sums are at least
            float32 whatever the dtype.
        offsets: (batch + 1,) int64; sequence b holds the tokens offsets[b]:offsets[b+1].
        mask: who sees whom within a sequence `[context | history | targets]`.
        alpha: scale of the scores; None = 1/sqrt(d_qk).
        scale_length: a fixed attribute of the model, never taken from the batch, so that a user's result does not
            depend on who else is in the batch.
        context_lengths, target_lengths: (batch,) integer tokens of each sequence that are context (in front) and
            targets (at the end); None = none.
        bias: relative bias added before SiLU.
        max_length: the longest sequence where the caller knows it (saves a GPU a synchronisation), or None.
        backend: None = the device's own: `cpu` on the CPU, `triton` on a GPU (`dense` for what the kernels do not do:
            float64, heads wider than 256). `reference` is the definition.
        blocks: block sizes of the kernels, as `longview bench tune` finds them; None = those that ship.

    Returns:
        (total, heads, d_v), dtype of v.

    Example:
        >>> q = k = v = torch.ones(3, 1, 2)
        >>> out = semi_local_attention(q, k, v, torch.tensor([0, 1, 3]), MaskSpec.causal(), alpha=0.5, scale_length=2)
        >>> out[:, 0, 0]
        tensor([0.3655, 0.3655, 0.7311])

    Raises:
        InputError: shapes, dtypes, offsets or lengths that do not fit together, or a backend that cannot run here;
            the message names the argument. Values of offsets and lengths are checked on the CPU only, where it is
            free.
    """
    _check(q, k, v, offsets, mask)
    _check_lengths(offsets, context_lengths, target_lengths)
    if bias is not None:
        _check_bias(bias, q)
    if alpha is None:
        alpha = 1 / math.sqrt(q.shape[2])
    _check_scalars(alpha, scale_length)
    chosen = backend or _default(q, v, bias)
    more: dict[str, Any] = {"max_length": max_length} if chosen == "dense" else {}
    if chosen == "triton":
        more = {"chosen": blocks or ChosenBlocks()}
        refusal = _why_no_kernel(q, v, bias)
        if refusal is not None:
            raise InputError(f"attention: backend 'triton' cannot do this: {refusal}; leave backend out")
    return _implementation(chosen, q.device)(
        q,
        k,
        v,
        offsets,
        mask,
        alpha=alpha,
        scale_length=scale_length,
        context_lengths=context_lengths,
        target_lengths=target_lengths,
        bias=bias,
        **more,
    )


def newest_rows_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    offsets: Tensor,
    mask: MaskSpec,
    *,
    alpha: float | None = None,
    scale_length: float,
    context_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Return the rows of `semi_local_attention` that belong to the newest tokens of each sequence; no gradient.

    What appending events to cached keys and values needs, and scoring candidates (as targets) against them: all
    candidates of a user share the tiles of keys. For an append-exact mask the cache may be `[context | the first K2
    keys | the last K1]`: the rest of the history is never seen.

    Args:
        q: (total_queries, heads, d_qk), the newest tokens of every sequence, oldest first.
        k, v: (total, heads, d), all tokens, those of `q` included.
        query_offsets: (batch + 1,) int64, where each sequence's queries begin; as many as tokens, or fewer.
        offsets, mask, alpha, scale_length, context_lengths, target_lengths: as in `semi_local_attention`.
        backend: None = the device's own; `reference` or `triton`.

    Returns:
        (total_queries, heads, d_v), dtype of v.

    Raises:
        InputError: as `semi_local_attention`, or more queries than tokens.
    """
    _check(k, k, v, offsets, mask)
    _check_lengths(offsets, context_lengths, target_lengths)
    _check_queries(q, k, query_offsets, offsets)
    alpha = 1 / math.sqrt(q.shape[2]) if alpha is None else alpha
    _check_scalars(alpha, scale_length)
    settings: dict[str, Any] = {
        "alpha": alpha,
        "scale_length": scale_length,
        "context_lengths": context_lengths,
        "target_lengths": target_lengths,
    }
    use_kernel = backend == "triton" or (backend is None and _default(q, v, None) == "triton")
    with torch.no_grad():
        if use_kernel:
            from longview.ops.attention.triton_attention import triton_newest_attention

            return triton_newest_attention(q, k, v, query_offsets, offsets, mask, **settings)
        from longview.ops.attention.newest import newest_rows

        return newest_rows(q, k, v, query_offsets, offsets, mask, **settings)


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Return the backends that can run on `device`, the default first."""
    first = ("cpu",) if torch.device(device).type == "cpu" else ("triton",)
    usable = [
        name for name in dict.fromkeys((*first, "dense", "reference", *BACKENDS)) if why_off(name, device) is None
    ]
    return tuple(usable)


def why_off(backend: str, device: torch.device | str = "cpu") -> str | None:
    """Return why `backend` cannot run on `device`, in a sentence, or None where it can."""
    kind = torch.device(device).type
    if backend == "triton":
        return why_no_triton(device)
    if backend == "cpu" and kind != "cpu":
        return f"the banded path is written for CPUs, and the tensors are on {kind}"
    return None


def _implementation(backend: str, device: torch.device) -> Callable[..., Tensor]:
    if backend not in BACKENDS:
        hint = suggestion(backend, BACKENDS)
        raise InputError(f"attention: unknown backend {backend!r}{hint}; known: {', '.join(BACKENDS)}")
    reason = why_off(backend, device)
    if reason is not None:
        raise InputError(f"attention: backend {backend!r} cannot run here: {reason}")
    if backend == "cpu":
        from longview.ops.attention.banded import banded_attention

        return banded_attention
    if backend == "triton":
        from longview.ops.attention.triton_attention import triton_attention

        return triton_attention
    if backend == "dense":
        from longview.ops.attention.dense import dense_attention

        return dense_attention
    from longview.ops.attention.reference import reference_attention

    return reference_attention


def _default(q: Tensor, v: Tensor, bias: RelativeBias | None) -> Backend:
    if q.device.type == "cpu":
        return "cpu"
    if why_off("triton", q.device) is None and _why_no_kernel(q, v, bias) is None:
        return "triton"
    return "dense"


def _why_no_kernel(q: Tensor, v: Tensor, bias: RelativeBias | None) -> str | None:
    """Return what of this call the Triton kernels do not do, or None where they do all of it."""
    if bias is not None and bias.position is not None and bias.position.shape[1] > FURTHEST:
        return f"a bias table of {bias.position.shape[1]} distances is longer than {FURTHEST}"
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{q.dtype} is not float32, bfloat16 or float16"
    if max(q.shape[2], v.shape[2]) > WIDEST:
        return f"heads of {q.shape[2]} and {v.shape[2]} are wider than {WIDEST}"
    return None


def _check_scalars(alpha: float, scale_length: float) -> None:
    if not math.isfinite(alpha):
        raise InputError(f"attention: alpha is {alpha}; expected a finite number")
    if not (scale_length > 0 and math.isfinite(scale_length)):
        raise InputError(f"attention: scale_length is {scale_length}; expected a positive number, fixed in the model")


def _check_queries(q: Tensor, k: Tensor, query_offsets: Tensor, offsets: Tensor) -> None:
    if q.dim() != 3 or q.shape[1:] != k.shape[1:] or q.dtype != k.dtype:
        given = f"{q.dtype} {tuple(q.shape)}"
        raise InputError(f"attention: q is {given}; expected {k.dtype} (queries, {k.shape[1]}, {k.shape[2]}) as k")
    if query_offsets.shape != offsets.shape or query_offsets.dtype != torch.int64:
        given = f"{query_offsets.dtype} {tuple(query_offsets.shape)}"
        raise InputError(f"attention: query_offsets is {given}; expected int64 of shape {tuple(offsets.shape)}")
    if query_offsets.device.type == "cpu":
        asked = query_offsets.diff()
        if int(query_offsets[0]) != 0 or int(query_offsets[-1]) != q.shape[0] or bool((asked < 0).any()):
            raise InputError(f"attention: query_offsets do not run from 0 to {q.shape[0]}, the queries in q")
        over = asked > offsets.diff()
        if bool(over.any()):
            raise InputError(f"attention: sequence {int(over.nonzero()[0])} has more queries than tokens")


def _check(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, mask: MaskSpec) -> None:
    if not isinstance(mask, MaskSpec):
        raise InputError(f"attention: mask is a {type(mask).__name__}; expected a MaskSpec, e.g. MaskSpec.causal()")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 3:
            raise InputError(f"attention: {name} has shape {tuple(x.shape)}; expected (total, heads, dimension)")
        if not x.is_floating_point() or x.dtype != q.dtype:
            raise InputError(f"attention: {name} is {x.dtype} and q {q.dtype}; expected one floating dtype for all")
        if x.device != q.device:
            raise InputError(f"attention: {name} is on {x.device} and q on {q.device}; expected one device")
    if k.shape != q.shape:
        raise InputError(f"attention: k has shape {tuple(k.shape)}, q {tuple(q.shape)}; they must be equal")
    if v.shape[:2] != q.shape[:2]:
        raise InputError(
            f"attention: v has {v.shape[0]} tokens and {v.shape[1]} heads, q has {q.shape[0]} and {q.shape[1]}"
        )
    if q.shape[1] == 0 or q.shape[2] == 0:
        raise InputError(f"attention: q has shape {tuple(q.shape)}; heads and dimension must be at least 1")
    if offsets.dim() != 1 or offsets.numel() == 0 or offsets.dtype != torch.int64:
        shape, dtype = tuple(offsets.shape), offsets.dtype
        raise InputError(f"attention: offsets is {dtype} of shape {shape}; expected int64 of shape (batch + 1,)")
    if offsets.device.type == "cpu":
        first, last = int(offsets[0]), int(offsets[-1])
        if first != 0 or last != q.shape[0]:
            raise InputError(
                f"attention: offsets run from {first} to {last}; expected 0 to {q.shape[0]}, the tokens of q"
            )
        if bool((offsets.diff() < 0).any()):
            at = int((offsets.diff() < 0).nonzero()[0])
            raise InputError(f"attention: offsets decrease at sequence {at}; they are cumulative lengths")


def _check_lengths(offsets: Tensor, context: Tensor | None, targets: Tensor | None) -> None:
    batch = offsets.numel() - 1
    for name, lengths in (("context_lengths", context), ("target_lengths", targets)):
        if lengths is None:
            continue
        if lengths.shape != (batch,) or lengths.is_floating_point():
            shape, dtype = tuple(lengths.shape), lengths.dtype
            raise InputError(f"attention: {name} is {dtype} of shape {shape}; expected integers of shape ({batch},)")
        if lengths.device.type == "cpu" and bool((lengths < 0).any()):
            raise InputError(f"attention: {name} of sequence {int((lengths < 0).nonzero()[0])} is negative")
    used = [lengths for lengths in (context, targets) if lengths is not None]
    if used and all(x.device.type == "cpu" for x in (offsets, *used)):
        over = sum(used) > offsets.diff()
        if bool(over.any()):
            at = int(over.nonzero()[0])
            raise InputError(f"attention: sequence {at} has more context and target tokens than tokens")


def _check_bias(bias: RelativeBias, q: Tensor) -> None:
    total, heads = q.shape[:2]
    for name, table in (("position", bias.position), ("time", bias.time)):
        if table is not None and (table.dim() != 2 or table.shape[0] != heads or table.shape[1] == 0):
            raise InputError(f"attention: bias.{name} has shape {tuple(table.shape)}; expected ({heads} heads, >= 1)")
    if bias.time is not None and bias.timestamps is None:
        raise InputError("attention: bias.time needs bias.timestamps; this batch has none")
    if bias.timestamps is not None and bias.timestamps.shape != (total,):
        raise InputError(f"attention: bias.timestamps has shape {tuple(bias.timestamps.shape)}; expected ({total},)")
