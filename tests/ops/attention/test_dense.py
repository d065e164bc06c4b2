"""The padded path and the single newest row equal the definition."""

from __future__ import annotations

import pytest
import torch

from longview.ops.attention import MaskSpec, RelativeBias, semi_local_attention
from longview.ops.attention.newest import newest_row_attention

LENGTHS = [7, 0, 1, 33, 40]
MASKS = [
    MaskSpec(),
    MaskSpec(local_window=5),
    MaskSpec(local_window=5, global_size=3, global_mode="prefix"),
    MaskSpec(local_window=5, global_size=3, global_mode="recent"),
]


def inputs(bias: bool) -> tuple[list[torch.Tensor], torch.Tensor, RelativeBias | None]:
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
    stamps = torch.randint(0, 10**6, (total,), generator=generator)
    tables = RelativeBias(make(2, 20), make(2, 16), stamps) if bias else None
    return [make(total, 2, 4), make(total, 2, 4), make(total, 2, 3)], offsets, tables


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_dense_equals_reference_with_all_gradients(mask: MaskSpec, bias: bool) -> None:
    qkv, offsets, tables = inputs(bias)
    leaves = [*qkv, *([tables.position, tables.time] if tables else [])]
    found = {}
    for backend in ("reference", "dense"):
        out = semi_local_attention(*qkv, offsets, mask, scale_length=10, bias=tables, backend=backend)
        found[backend] = [out, *torch.autograd.grad(out.square().sum(), leaves)]
    for expected, got in zip(found["reference"], found["dense"], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_newest_row_equals_reference(mask: MaskSpec, bias: bool) -> None:
    (q, k, v), offsets, tables = inputs(bias)
    out = semi_local_attention(q, k, v, offsets, mask, scale_length=10, bias=tables, backend="reference")
    filled = offsets.diff() > 0
    newest = (offsets[1:] - 1).clamp(min=0)
    got = newest_row_attention(q[newest], k, v, offsets, mask, alpha=0.5, scale_length=10, bias=tables)
    torch.testing.assert_close(got[filled], out[newest][filled], rtol=1e-9, atol=1e-10)


def test_dense_with_context_and_targets() -> None:
    qkv, offsets, _ = inputs(False)
    context, targets = torch.tensor([2, 0, 0, 1, 3]), torch.tensor([1, 0, 1, 2, 4])
    mask = MaskSpec(local_window=4, global_size=2, global_mode="prefix", target_scope="semi_local")
    outs = [
        semi_local_attention(
            *qkv, offsets, mask, scale_length=10, context_lengths=context, target_lengths=targets, backend=backend
        )
        for backend in ("reference", "dense")
    ]
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-9, atol=1e-10)
