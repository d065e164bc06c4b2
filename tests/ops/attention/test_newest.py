"""Attention of the newest rows equals the rows of the full operation, with context, targets and bias."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longview.ops.attention import MaskSpec, RelativeBias, semi_local_attention
from longview.ops.attention.newest import newest_row_attention, newest_rows
from longview.ops.jagged import offsets_from_lengths

CONTEXT, HISTORY, TARGETS = torch.tensor([2, 0, 3, 1]), torch.tensor([9, 1, 2, 6]), torch.tensor([3, 2, 0, 1])
OFFSETS = offsets_from_lengths(CONTEXT + HISTORY + TARGETS)
SETTINGS = {"alpha": 0.4, "scale_length": 3.0}
MASKS = {
    "causal": MaskSpec.causal(),
    "window": MaskSpec(local_window=3),
    "prefix": MaskSpec(local_window=3, global_size=2),
    "recent": MaskSpec(local_window=3, global_size=2, global_mode="recent"),
    "torcheasyrec": MaskSpec.torcheasyrec(local_window=3, global_size=4),
    "context in the window": MaskSpec(local_window=4, context_visible=False),
}


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    total = int(OFFSETS[-1])
    q, k = (torch.randn(total, 2, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return q, k, torch.randn(total, 2, 3, generator=generator, dtype=torch.float64)


def bias() -> RelativeBias:
    generator = torch.Generator().manual_seed(1)
    position, time = (torch.randn(2, n, generator=generator, dtype=torch.float64) for n in (5, 8))
    return RelativeBias(position, time, torch.randint(0, 60, (int(OFFSETS[-1]),), generator=generator))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_the_newest_history_row(name: str, with_bias: bool) -> None:
    q, k, v = inputs()
    settings = {
        **SETTINGS,
        "context_lengths": CONTEXT,
        "target_lengths": TARGETS,
        "bias": bias() if with_bias else None,
    }
    full = semi_local_attention(q, k, v, OFFSETS, MASKS[name], **settings, backend="reference")
    newest = OFFSETS[1:] - 1 - TARGETS
    found = newest_row_attention(q[newest], k, v, OFFSETS, MASKS[name], **settings)
    torch.testing.assert_close(found, full[newest], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MASKS)
def test_several_newest_rows_with_a_bias(name: str) -> None:
    q, k, v = inputs()
    settings = {**SETTINGS, "context_lengths": CONTEXT, "target_lengths": TARGETS, "bias": bias()}
    full = semi_local_attention(q, k, v, OFFSETS, MASKS[name], **settings, backend="reference")
    asked = torch.tensor([4, 3, 0, 2])
    rows = torch.cat([torch.arange(end - n, end) for end, n in zip(OFFSETS[1:].tolist(), asked.tolist(), strict=True)])
    found = newest_rows(q[rows], k, v, offsets_from_lengths(asked), OFFSETS, MASKS[name], **settings)
    torch.testing.assert_close(found, full[rows], rtol=1e-12, atol=1e-12)


def test_distances_are_those_of_the_whole_history_where_tokens_are_gone() -> None:
    """Prefix and window of one long sequence, the middle left out, give the newest row of the whole."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(20, 2, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    tables = RelativeBias(torch.randn(2, 20, generator=generator, dtype=torch.float64))
    mask = MaskSpec(local_window=5, global_size=3)
    full = semi_local_attention(q, k, v, torch.tensor([0, 20]), mask, **SETTINGS, bias=tables)
    kept = torch.tensor([0, 1, 2, 15, 16, 17, 18, 19])
    ends = torch.tensor([0, 1]), torch.tensor([0, 8])
    found = newest_rows(q[-1:], k[kept], v[kept], *ends, mask, **SETTINGS, bias=tables, places=kept)
    torch.testing.assert_close(found, full[-1:], rtol=1e-12, atol=1e-12)
