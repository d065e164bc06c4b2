"""What the GPU benchmark of attention times beside our kernels: each as a forward and a backward call.

A provider takes the same bf16 inputs, (T, heads, dim) with equal or jagged lengths, and returns two functions that do
the whole pass. Softmax attention is another function than ours; it stands for what a user would otherwise run.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longview.errors import InputError
from longview.ops.attention import MaskSpec

Pass = Callable[[], object]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

META = "generative_recommenders.ops.triton.triton_hstu_attention"
META_FILE = Path(META.replace(".", "/") + ".py")


@dataclass(frozen=True)
class Inputs:
    """Several sets of q, k, v and d_out, taken in turn so that none is still in the cache."""

    offsets: Tensor
    longest: int
    sets: tuple[tuple[Tensor, Tensor, Tensor, Tensor], ...]

    @property
    def equal(self) -> bool:
        return (self.offsets.numel() - 1) * self.longest == self.sets[0][0].shape[0]


def ours(inputs: Inputs, mask: MaskSpec) -> tuple[Pass, Pass]:
    """Return the passes of our kernels, into buffers that hold NaN before the first run."""
    from longview.ops.attention.triton_launch import Call, attention_backward_into, attention_forward_into, batch_of

    q, _, v, _ = inputs.sets[0]
    call = Call(batch_of(inputs.offsets, q.shape[0], mask, None, None), q.shape[2] ** -0.5, float(inputs.longest))
    out = torch.full_like(v, torch.nan)
    grads = (torch.full_like(q, torch.nan), torch.full_like(q, torch.nan), torch.full_like(v, torch.nan))
    turns, turns_back = cycle(inputs.sets), cycle(inputs.sets)

    def forward() -> Tensor:
        q, k, v, _ = next(turns)
        attention_forward_into(out, q, k, v, call)
        return out

    def backward() -> tuple[Tensor, ...]:
        q, k, v, d_out = next(turns_back)
        attention_backward_into(grads, d_out, q, k, v, call)
        return grads

    return forward, backward


def differentiable(inputs: Inputs, attention: Attention) -> tuple[Pass, Pass]:
    """Return the passes of a differentiable function; backward runs on graphs built before."""
    turns = cycle(inputs.sets)
    graphs = []
    for q, k, v, d_out in inputs.sets:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        graphs.append((attention(*leaves), leaves, d_out))
    turns_back = cycle(graphs)

    def forward() -> Tensor:
        q, k, v, _ = next(turns)
        with torch.no_grad():
            return attention(q, k, v)

    def backward() -> object:
        out, leaves, d_out = next(turns_back)
        return torch.autograd.grad(out, leaves, d_out, retain_graph=True)

    return forward, backward


def sdpa_causal(inputs: Inputs) -> Attention:
    """Return torch's own causal softmax attention over equal lengths."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (_heads_first(x, inputs.longest) for x in (q, k, v))
        return _tokens_first(F.scaled_dot_product_attention(q, k, v, is_causal=True))

    return attend


def flex(inputs: Inputs, mask: MaskSpec) -> Attention:
    """Return FlexAttention, compiled: softmax over the same mask, skipping the same blocks."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    window, prefix, longest = mask.local_window, mask.global_size, inputs.longest

    def visible(b: Tensor, h: Tensor, row: Tensor, col: Tensor) -> Tensor:
        near = (row - col < window) | (col < prefix) if window else row >= 0
        return (col <= row) & near

    torch._dynamo.reset()  # each mask is compiled anew, and after a few torch would quietly stop compiling
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    blocks = create_block_mask(visible, None, None, longest, longest, device="cuda")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (_heads_first(x, longest) for x in (q, k, v))
        return _tokens_first(compiled(q, k, v, block_mask=blocks))

    return attend


def compiled_dense(inputs: Inputs, mask: MaskSpec) -> Attention:
    """Return the definition over equal lengths, compiled: it holds every score."""
    visible = mask.dense(0, inputs.longest, 0).cuda()
    core = partial(_compiled_dense(), visible=visible, alpha=inputs.sets[0][0].shape[2] ** -0.5, scale=inputs.longest)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (_heads_first(x, inputs.longest) for x in (q, k, v))
        return _tokens_first(core(q, k, v))

    return attend


def meta_hstu(inputs: Inputs, mask: MaskSpec, checkout: Path) -> Attention:
    """Return the Triton kernel of a checkout of generative-recommenders, autotuned by itself.

    Its configurations of fewer than 64 rows or 32 keys are left out of the search: at thousands of tokens they are
    several times slower than the others, and trying them takes minutes.

    Raises:
        InputError: the checkout does not hold it, or the mask is one it does not have.
    """
    if not (checkout / META_FILE).exists():
        raise InputError(
            f"--peer-checkout {checkout}: no {META_FILE} there; give a checkout of generative-recommenders"
        )
    if mask.global_size:
        raise InputError("Meta's kernel has no prefix")
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    module: Any = importlib.import_module(META)
    for tuned in (module._hstu_attn_fwd, module._hstu_attn_bwd):
        large = [c for c in tuned.configs if c.kwargs["BLOCK_M"] >= 64 and c.kwargs["BLOCK_N"] >= 32]
        tuned.configs = large or tuned.configs
    kernel: Any = module.triton_hstu_mha
    window = max(mask.local_window - 1, 0)  # it keeps that many keys before the row's own

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found: Tensor = kernel(
            N=inputs.longest, alpha=q.shape[2] ** -0.5, q=q, k=k, v=v, seq_offsets=inputs.offsets, max_attn_len=window
        )
        return found

    return attend


def _heads_first(x_THD: Tensor, length: int) -> Tensor:
    return x_THD.view(-1, length, *x_THD.shape[1:]).transpose(1, 2)


def _tokens_first(x_BHLD: Tensor) -> Tensor:
    return x_BHLD.transpose(1, 2).flatten(0, 1)


def _dense(q: Tensor, k: Tensor, v: Tensor, *, visible: Tensor, alpha: float, scale: float) -> Tensor:
    weight = F.silu((q @ k.mT).float() * alpha) * visible / scale
    return weight.to(v.dtype) @ v


@cache
def _compiled_dense() -> Any:
    return torch.compile(_dense)
