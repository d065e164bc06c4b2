"""Semi-local pointwise attention: one operation for training, prefill, update and candidate scoring.

    from longview.ops.attention import MaskSpec, semi_local_attention

`mask.py` says who sees whom, `reference.py` is the definition, `banded.py` the CPU path, `triton_attention.py` the
GPU's, `dense.py` the padded path for what neither does, `checks.py` what is refused; this file dispatches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from longview.errors import InputError, suggestion
from longview.ops.attention.bias import RelativeBias
from longview.ops.attention.checks import check_bias, check_lengths, check_queries, check_scalars, check_tokens
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
            the message names the argument. Values of offsets and lengths are such an error on the CPU alone. A GPU
            looks at them once a batch and stops before it would read beyond a tensor: it prints what was wrong, and the
            next call that waits for it raises a RuntimeError.
    """
    check_tokens(q, k, v, offsets, mask)
    check_lengths(offsets, context_lengths, target_lengths, max_length)
    if bias is not None:
        check_bias(bias, q)
    if alpha is None:
        alpha = 1 / math.sqrt(q.shape[2])
    check_scalars(alpha, scale_length)
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
    check_tokens(k, k, v, offsets, mask)
    check_lengths(offsets, context_lengths, target_lengths)
    check_queries(q, k, query_offsets, offsets)
    alpha = 1 / math.sqrt(q.shape[2]) if alpha is None else alpha
    check_scalars(alpha, scale_length)
    settings: dict[str, Any] = {
        "alpha": alpha,
        "scale_length": scale_length,
        "context_lengths": context_lengths,
        "target_lengths": target_lengths,
    }
    use_kernel = backend == "triton" or (backend is None and _default(q, v, None) == "triton")
    if backend not in (None, "reference"):
        _check_kernel(backend, q, v)
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


def _check_kernel(backend: str, q: Tensor, v: Tensor) -> None:
    """Refuse what is not the kernel of `newest_rows_attention`, or a kernel that cannot do this here."""
    if backend != "triton":
        hint = suggestion(backend, ("reference", "triton"))
        raise InputError(f"attention: the newest rows have no backend {backend!r}{hint}; known: reference, triton")
    reason = why_off(backend, q.device) or _why_no_kernel(q, v, None)
    if reason is not None:
        raise InputError(f"attention: backend 'triton' cannot run here: {reason}; leave backend out")


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
