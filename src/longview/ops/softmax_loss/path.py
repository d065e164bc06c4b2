"""Which implementation of a loss runs: blocks of logits in plain torch, kernels, or blocks made by kernels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.kernels import why_no_triton
from longview.ops.softmax_loss.numerics import matmul_dtype

Path = Literal["blocked", "triton", "triton-blocked"]
Kind = Literal["full", "sampled"]
PATHS: tuple[Path, ...] = ("blocked", "triton", "triton-blocked")

MAX_WIDTH = 512  # the registers of a program hold no wider accumulator
# Up to these widths the kernels that keep logits in registers are taken where nothing else was asked for. The wider
# the vectors, the less of a tile fits beside its accumulator (`results/gpu-loss.json`, widths 128 and 512).
DEFAULT_WIDTH: dict[Kind, int] = {"full": 256, "sampled": 512}


def path_for(kind: Kind, queries: Tensor, items: Tensor, path: Path | None, block: int | None) -> Path:
    """Return `path`, or where it is None the one for these tensors: kernels on a GPU that can run them.

    A `block` asks for blocks. Float32 products stay with the vendor's library, which has faster ones.

    Raises:
        InputError: kernels where they cannot run, with the reason; an unknown path.
    """
    if path not in (None, *PATHS):
        raise InputError(f"path must be one of {', '.join(map(repr, PATHS))}, got {path!r}")
    if path is not None and path != "blocked":
        reason = why_not(kind, queries, items, path)
        if reason is None and block is not None:
            reason = "block sets how many queries the blocked path takes"
        if reason is not None:
            raise InputError(f"path={path!r} cannot be used here: {reason}")
        return path
    small = matmul_dtype(queries, items) in (torch.bfloat16, torch.float16)
    if path == "blocked" or block is not None or not queries.is_cuda or not small:
        return "blocked"
    wide: Path = "triton-blocked" if kind == "full" else "blocked"
    best: Path = "triton" if queries.shape[1] <= DEFAULT_WIDTH[kind] else wide
    return best if best == "blocked" or why_not(kind, queries, items, best) is None else "blocked"


def why_not(kind: Kind, queries: Tensor, items: Tensor, path: Path) -> str | None:
    """Return why the kernels of `path` cannot serve these tensors, in a sentence, or None where they can."""
    dtype = matmul_dtype(queries, items)
    if path == "triton-blocked" and kind == "sampled":
        return "it is a form of the full softmax"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels accumulate in float32, and the products are {str(dtype).removeprefix('torch.')}"
    if path == "triton" and queries.shape[1] > MAX_WIDTH:
        return f"the kernels take vectors of up to {MAX_WIDTH} values, got {queries.shape[1]}"
    return why_no_triton(queries.device)
