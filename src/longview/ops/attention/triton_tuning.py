"""Block sizes of the kernels: a table measured on an H200, keyed by head dimension and by how many keys a row sees.

A short window wants low blocks (a block computes (K1 + K2 + BM) / (K1 + K2) times what is useful); a wide head wants
more warps, or its accumulators do not fit the registers. Nothing is tuned at run time unless asked
(`longview bench attention --tune`), so the first call never stalls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longview.ops.attention.mask import MaskSpec

Kernel = Literal["forward", "rows", "keys"]
SHORT = 384  # keys a row sees, K1 + K2: up to here blocks are low


@dataclass(frozen=True, slots=True)
class Blocks:
    """BM rows, BN keys, warps and pipeline stages of one kernel."""

    rows: int
    keys: int
    warps: int
    stages: int


# By the larger of the padded head dimensions: (short window, otherwise).
_HALF: dict[Kernel, dict[int, tuple[Blocks, Blocks]]] = {
    "forward": {
        64: (Blocks(64, 64, 4, 3), Blocks(128, 64, 4, 3)),
        128: (Blocks(64, 64, 4, 3), Blocks(128, 64, 8, 3)),
        256: (Blocks(64, 32, 4, 2), Blocks(128, 32, 8, 2)),
    },
    "rows": {
        64: (Blocks(64, 64, 4, 3), Blocks(128, 64, 8, 3)),
        128: (Blocks(64, 64, 4, 2), Blocks(128, 64, 8, 2)),
        256: (Blocks(64, 32, 8, 2), Blocks(64, 32, 8, 2)),
    },
    "keys": {
        64: (Blocks(64, 64, 4, 3), Blocks(64, 128, 8, 3)),
        128: (Blocks(64, 64, 4, 2), Blocks(64, 128, 8, 2)),
        256: (Blocks(32, 64, 8, 2), Blocks(32, 64, 8, 2)),
    },
}
# Float32 operands take twice the room, and IEEE products run on the ordinary units: small blocks.
_SINGLE = Blocks(32, 32, 4, 2)


def blocks_for(kernel: Kernel, mask: MaskSpec, padded: int, itemsize: int) -> Blocks:
    """Return the block sizes of `kernel` for heads of `padded` numbers of `itemsize` bytes."""
    if itemsize > 2:
        return _SINGLE
    sizes = _HALF[kernel]
    short, long = sizes[next(dim for dim in sorted(sizes) if padded <= dim)]
    return short if 0 < mask.local_window and mask.local_window + mask.global_size <= SHORT else long
