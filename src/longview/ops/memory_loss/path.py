"""Which implementation of the memory losses runs, tiles in plain torch or kernels, and in which dtype."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.kernels import why_no_triton

Backend = Literal["blocked", "triton", "reference"]
BACKENDS: tuple[Backend, ...] = ("blocked", "triton", "reference")
MAX_WIDTH = 512  # the registers of a program hold no wider accumulator
DENSE_PAIRS = 1 << 20  # on a GPU so few, a batch against itself, take longer to launch in tiles than to compute


def backend_for(embeddings: Tensor, reference: Tensor, backend: Backend | None) -> Backend:
    """Return `backend`, or where it is None the one for these tensors: kernels on a GPU with a 2-byte memory.

    Float32 products stay with the vendor's library, which has faster ones; there few pairs are compared densely.

    Raises:
        InputError: kernels where they cannot run, with the reason; an unknown backend.
    """
    if backend not in (None, *BACKENDS):
        raise InputError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend == "triton":
        reason = why_not(embeddings, reference)
        if reason is not None:
            raise InputError(f"backend='triton' cannot be used here: {reason}")
    if backend is not None:
        return backend
    if not reference.is_cuda:
        return "blocked"
    if reference.dtype in (torch.bfloat16, torch.float16) and why_not(embeddings, reference) is None:
        return "triton"
    return "reference" if len(embeddings) * len(reference) <= DENSE_PAIRS else "blocked"


def why_not(embeddings: Tensor, reference: Tensor) -> str | None:
    """Return why the kernels cannot serve these tensors, in a sentence, or None where they can."""
    if torch.float64 in (embeddings.dtype, reference.dtype):
        return "the kernels accumulate in float32, and the products are float64"
    if reference.requires_grad and torch.is_grad_enabled():
        return "the kernels make the gradient of the batch alone, and the reference needs one"
    if reference.shape[1] > MAX_WIDTH:
        return f"the kernels take vectors of up to {MAX_WIDTH} values, got {reference.shape[1]}"
    if reference.shape[0] >= 1 << 31:
        return f"the kernels number rows in 32 bits, and there are {len(reference)}"
    return why_no_triton(reference.device)


def fast_products(memory: Tensor) -> bool:
    """Return whether products in a 2-byte dtype of the memory are faster than in float32 where it is."""
    if memory.is_cuda:
        return memory.dtype in (torch.bfloat16, torch.float16)
    return memory.dtype == torch.bfloat16 and _has_bfloat16()


@functools.cache
def _has_bfloat16() -> bool:
    """Return whether this CPU has instructions for products in bfloat16; without, they are emulated."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # younger than our least torch
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
