"""The tile of a walk at each width, and what it is compiled with."""

from __future__ import annotations

from longview.ops.memory_loss.forms import Sums
from longview.ops.softmax_loss.triton_tile import Tile

# By padded width, for 2-byte products: a tile, and how many programs of it a multiprocessor holds.
TILES = {
    64: (Tile(64, 64, 4, 3), 3),
    128: (Tile(64, 64, 4, 3), 3),
    256: (Tile(128, 64, 8, 2), 1),
    512: (Tile(64, 64, 8, 2), 1),
}
LISTED = 32  # rows of a tile of positives, which are few and whose sums take more registers
REGISTERS, MOST_REGISTERS = 65536, 255  # of a multiprocessor, and of a thread
EARLY_WIDTH = 128  # from here on, registers let no more walks on a multiprocessor than are meant for it
WIDE_TILE = (Tile(32, 32, 4, 1), 2)  # float32 products use no tensor core


def tile_for(padded: int, wide: bool) -> tuple[Tile, int]:
    """Return the tile of a walk, and how many programs of it a multiprocessor holds."""
    return WIDE_TILE if wide else TILES[max(64, padded)]


def options(tile: Tile, per_processor: int, gather: bool) -> dict[str, int]:
    """Return what a walk is compiled with, among it the registers that leave room for so many programs.

    With `gather` there are few programs, and more registers serve them better.
    """
    registers = REGISTERS // (32 * tile.warps * per_processor) // 8 * 8
    limit = {} if gather or registers >= MOST_REGISTERS else {"maxnreg": registers}
    return {"num_warps": tile.warps, "num_stages": tile.stages, **limit}


def may_begin_early(sums: Sums, padded: int, wide: bool) -> bool:
    """Return whether a walk may begin while the kernel before it ends.

    Where a multiprocessor has room for more programs than are meant for it, those that begin early crowd on the first
    ones that are free, and the others idle. There a walk begins when all are free, and its programs are dealt evenly.
    """
    return sums != "best" and padded >= EARLY_WIDTH and not wide
