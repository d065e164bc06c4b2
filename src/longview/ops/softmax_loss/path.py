"""Which implementation of a loss runs: products in blocks of logits, or kernels that keep logits in registers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.kernels import why_no_triton
from longview.ops.softmax_loss.numerics import matmul_dtype

Path = Literal["blocked", "triton"]
Kind = Literal["full", "sampled"]

MAX_WIDTH = 512  # the registers of a program hold no wider accumulator
# Up to these widths the kernels are taken where nothing else was asked for. Blocks do one product less (three against
# four) but pass over every logit a dozen times; the wider the vectors, the more the product weighs.
DEFAULT_WIDTH: dict[Kind, int] = {"full": 512, "sampled": 512}


def path_for(kind: Kind, queries: Tensor, items: Tensor, path: Path | None, block: int | None) -> Path:
    """Return `path`, or where it is None the one for these tensors: the kernels on a GPU that can run them.

    A `block` asks for blocks. Float32 products stay with the vendor's library, which has faster ones.

    Raises:
        InputError: `triton` where it cannot run, with the reason; an unknown path.
    """
    if path not in (None, "blocked", "triton"):
        raise InputError(f"path must be 'blocked' or 'triton', got {path!r}")
    if path == "triton":
        reason = why_not(queries, items)
        if reason is None and block is not None:
            reason = "block sets how many queries the blocked path takes"
        if reason is not None:
            raise InputError(f"path='triton' cannot be used here: {reason}")
        return path
    if path == "blocked" or block is not None or not queries.is_cuda:
        return "blocked"
    small = matmul_dtype(queries, items) in (torch.bfloat16, torch.float16)
    pays = small and queries.shape[1] <= DEFAULT_WIDTH[kind]
    return "triton" if pays and why_not(queries, items) is None else "blocked"


def why_not(queries: Tensor, items: Tensor) -> str | None:
    """Return why the kernels cannot serve these tensors, in a sentence, or None where they can."""
    dtype = matmul_dtype(queries, items)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels accumulate in float32, and the products are {str(dtype).removeprefix('torch.')}"
    if queries.shape[1] > MAX_WIDTH:
        return f"the kernels take vectors of up to {MAX_WIDTH} values, got {queries.shape[1]}"
    return why_no_triton(queries.device)
