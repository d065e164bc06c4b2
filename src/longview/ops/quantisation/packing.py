"""The bytes of a quantised row, and what is in them.

A row of D values is cut into groups of `group` values; the last group may hold fewer. In a group

    value = zero + scale * code,    code in 0 … 2^bits - 1,    scale and zero float16

With 8 bits zero is rounded down and scale up, so that the codes cover the group's range and
|value - original| <= scale / 2. With 4 bits they are fitted: starting there, codes and the line through them take turns
at lowering the group's squared error, which is then about an eighth less; an outlier may lie beyond the codes.

Stored is one run of bytes: the codes of all groups, then (scale, zero) of each. Two codes of 4 bits share a byte: that
of value j of a group in the low half, that of value j + group / 2 in the high half, so that both halves of the bytes of
a group are runs of neighbouring columns. A row takes G * (group * bits / 8 + 4) bytes, G = ceil(D / group).

Source of the scheme: row-wise INT4/INT8 tables, ULTRA-HSTU, arXiv 2602.16986; this layout is ours.
Shape suffixes: V rows, G groups, g values of a group, D width, C bytes of codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PAIR = 4  # bytes of a scale and a zero
FITTED_BITS = 4  # from 8 bits on the error is far below that of anything the values go into
FITTING_ROUNDS = 8


class Layout(NamedTuple):
    """How rows of `width` values are stored."""

    width: int
    bits: int
    group: int

    @property
    def groups(self) -> int:
        """The groups of a row."""
        return -(-self.width // self.group)

    @property
    def codes(self) -> int:
        """The bytes of a row's codes."""
        return self.groups * self.group * self.bits // 8

    @property
    def pitch(self) -> int:
        """The bytes of a row."""
        return self.codes + PAIR * self.groups

    @property
    def levels(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1


def quantise_block(x_VD: Tensor, layout: Layout) -> Tensor:
    """Return the stored rows (V, pitch) uint8 of finite values, any floating dtype, within float16's range."""
    x_VGg, counts_Gg = _grouped(x_VD.float(), layout)
    scale_VG, zero_VG = _covering(x_VGg, layout)
    if layout.bits <= FITTED_BITS:
        scale_VG, zero_VG = _fitted(x_VGg, counts_Gg, scale_VG, zero_VG, layout)
    codes = _codes(x_VGg, scale_VG, zero_VG, layout)
    pairs = torch.stack([scale_VG, zero_VG], dim=2).flatten(1).contiguous().view(torch.uint8)
    return torch.cat([pack(codes.to(torch.uint8), layout), pairs], dim=1)


def _covering(x_VGg: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the smallest scale and largest zero (V, G) float16 whose codes reach all values."""
    zero_VG = _towards(x_VGg.amin(2), down=True)
    return _towards((x_VGg.amax(2) - zero_VG.float()) / layout.levels, down=False), zero_VG


def _fitted(
    x_VGg: Tensor, counts_Gg: Tensor, scale_VG: Tensor, zero_VG: Tensor, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Return scale and zero (V, G) float16 of the least squared error met on the way from those given.

    Each round takes the nearest codes, and then the line of least squares through (code, value).
    """
    least, best = x_VGg.new_full(scale_VG.shape, torch.inf), (scale_VG, zero_VG)
    number_G = counts_Gg.sum(1)
    mean_VG = (x_VGg * counts_Gg).sum(2) / number_G
    for _ in range(FITTING_ROUNDS + 1):
        codes = _codes(x_VGg, scale_VG, zero_VG, layout)
        values = torch.addcmul(zero_VG.float()[:, :, None], codes, scale_VG.float()[:, :, None])
        error = ((values - x_VGg).square_() * counts_Gg).sum(2)
        better = error < least  # never of an infinity, which float16 makes of what lies beyond it
        least = torch.where(better, error, least)
        best = (torch.where(better, scale_VG, best[0]), torch.where(better, zero_VG, best[1]))
        centre = (codes * counts_Gg).sum(2) / number_G
        codes = codes.sub_(centre[:, :, None]).mul_(counts_Gg)
        spread = codes.square().sum(2)
        slope = torch.where(spread > 0, (codes * x_VGg).sum(2) / spread, scale_VG.float())
        scale_VG, zero_VG = slope.half(), (mean_VG - slope * centre).half()
    return best


def _codes(x_VGg: Tensor, scale_VG: Tensor, zero_VG: Tensor, layout: Layout) -> Tensor:
    """Return the codes (V, G, g) float32 nearest to the values."""
    step = scale_VG.float()[:, :, None]
    codes = (x_VGg - zero_VG.float()[:, :, None]).div_(torch.where(step > 0, step, 1.0))
    return codes.round_().clamp_(0, layout.levels)


def dequantise_block(rows_VP: Tensor, layout: Layout, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the values (V, width) of stored rows, computed in float32."""
    scale_VG, zero_VG = pairs_of(rows_VP, layout)
    codes_VGg = unpack(rows_VP[:, : layout.codes], layout)
    values = torch.addcmul(zero_VG.float()[:, :, None], codes_VGg, scale_VG.float()[:, :, None])
    return values.flatten(1)[:, : layout.width].to(dtype)


def pairs_of(rows_VP: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return scale and zero (V, G) float16."""
    pairs = rows_VP[:, layout.codes :].contiguous().view(torch.float16).view(len(rows_VP), layout.groups, 2)
    return pairs[:, :, 0], pairs[:, :, 1]


def pack(codes_VGg: Tensor, layout: Layout) -> Tensor:
    """Return the bytes (V, C) of codes (V, G, g) uint8."""
    if layout.bits == 4:
        left, right = codes_VGg.chunk(2, dim=2)
        codes_VGg = left | (right << 4)
    return codes_VGg.flatten(1)


def unpack(packed_VC: Tensor, layout: Layout) -> Tensor:
    """Return the codes (V, G, g) float32 of bytes (V, C)."""
    bytes_VGb = packed_VC.reshape(len(packed_VC), layout.groups, -1)
    if layout.bits == 4:
        bytes_VGb = torch.cat([bytes_VGb & 15, bytes_VGb >> 4], dim=2)
    return bytes_VGb.float()


def _grouped(x_VD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return (V, G, g), and (G, g) that is 1 at values and 0 at what fills up the last group of a row.

    That is the row's last value, which widens no range.
    """
    missing = layout.groups * layout.group - layout.width
    if missing:
        x_VD = torch.cat([x_VD, x_VD[:, -1:].expand(-1, missing)], dim=1)
    counts = torch.arange(layout.groups * layout.group, device=x_VD.device) < layout.width
    shape = layout.groups, layout.group
    return x_VD.reshape(len(x_VD), *shape), counts.float().view(shape)


def _towards(x: Tensor, *, down: bool) -> Tensor:
    """Return x float32 as the next float16 that is not above it (`down`) or not below it."""
    near = x.half()
    wrong = near.float() > x if down else near.float() < x
    limit = torch.full_like(near, -torch.inf if down else torch.inf)
    return torch.where(wrong, torch.nextafter(near, limit), near)
