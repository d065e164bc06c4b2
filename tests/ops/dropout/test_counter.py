"""Dropout by counter: the words published for Philox, the numbers drawn from them, and the same bits in a kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from longview.ops.dropout import counter
from longview.ops.dropout.counter import dropout_mask, kept_scale, level
from longview.ops.dropout.triton_counter import kept

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on CPUs the tests run Triton's interpreter, see conftest.py
SEEDS = (0, 3, (1 << 31) + 5, (1 << 61) + (1 << 40) + 12345)


@triton.jit
def keep_kernel(seed, out, level, FIRST: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr):
    """1 where kept, for R rows from the program's first on and BLOCK columns from FIRST on."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    keep = kept(tl.load(seed), row, tl.zeros_like(row) + FIRST, level, BLOCK)
    tl.store(out + row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :], keep.to(tl.int8))


def drawn_by_kernel(seed: int, rows: int, first: int, columns: int, rate: float, block_rows: int) -> Tensor:
    out = torch.full((rows, columns), 9, dtype=torch.int8, device=DEVICE)
    seeds = torch.tensor([seed], device=DEVICE)
    keep_kernel[(rows // block_rows,)](seeds, out, level(rate), FIRST=first, R=block_rows, BLOCK=columns)
    return out.cpu()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", [1 / 65536, 0.2, 0.5, 65535 / 65536])
def test_a_kernel_draws_the_bits_of_the_plain_form(seed: int, rate: float) -> None:
    expected = dropout_mask(seed, 16, 64, rate) != 0
    assert torch.equal(drawn_by_kernel(seed, 16, 0, 64, rate, 4), expected.to(torch.int8))


@pytest.mark.parametrize(("first", "columns", "block_rows"), [(0, 128, 1), (0, 128, 8), (64, 64, 2), (120, 8, 4)])
def test_tiles_of_any_size_and_place_draw_the_same(first: int, columns: int, block_rows: int) -> None:
    expected = dropout_mask(SEEDS[-1], 8, 128, 0.3)[:, first : first + columns] != 0
    drawn = drawn_by_kernel(SEEDS[-1], 8, first, columns, 0.3, block_rows)
    assert torch.equal(drawn, expected.to(torch.int8))


def test_the_words_are_those_published_for_philox(monkeypatch: pytest.MonkeyPatch) -> None:
    """`kat_vectors` of Random123: philox4x32, seven rounds, counter and key zero."""
    zero = np.zeros(1, np.uint64)
    assert [int(word[0]) for word in counter._philox(0, zero, zero)] == [
        0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48,
    ]  # fmt: skip
    monkeypatch.setattr(counter, "ROUNDS", 10)
    assert [int(word[0]) for word in counter._philox(0, zero, zero)] == [
        0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8,
    ]  # fmt: skip


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_elements_are_dropped_at_the_rate_and_independently(rate: float) -> None:
    mask = dropout_mask(7, 500, 512, rate)
    dropped = (mask == 0).double()
    error = 4 * (rate * (1 - rate) / mask.numel()) ** 0.5
    assert dropped.mean().item() == pytest.approx(rate, abs=error)
    assert mask.unique().tolist() == [0.0, kept_scale(rate)]
    assert mask.mean().item() == pytest.approx(1, abs=error * kept_scale(rate))
    for both in (dropped[1:] * dropped[:-1], dropped[:, 1:] * dropped[:, :-1], dropped[:, 8:] * dropped[:, :-8]):
        assert both.mean().item() == pytest.approx(rate * rate, abs=2 * error)


def test_the_level_is_of_65536_and_no_rate_but_zero_is_lost() -> None:
    assert (level(0.0), level(1e-9), level(0.5), level(1 - 1e-9)) == (0, 1, 32768, 65535)
    assert (kept_scale(0.0), kept_scale(0.5)) == (1.0, 2.0)
