"""Block sizes of the kernels: a table measured on an H200, keyed by head dimension and by how many keys a row sees.

A short window wants low blocks (a block computes (K1 + K2 + BM) / (K1 + K2) times what is useful); a wide head wants
more warps, or its accumulators do not fit the registers. Nothing is tuned at run time, so the first call never stalls;
who has another GPU or shape measures once (`longview bench tune`) and gives the result with the call (`ChosenBlocks`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from longview.ops.attention.mask import MaskSpec

Kernel = Literal["forward", "rows", "keys"]
Reach = Literal["short", "window", "all"]
SHORT = 384  # keys a row sees, K1 + K2: up to here every tile counts


@dataclass(frozen=True, slots=True)
class Blocks:
    """BM rows, BN keys, warps and pipeline stages of one kernel; `joined`: edge tiles share the loop of the others."""

    rows: int
    keys: int
    warps: int
    stages: int
    joined: bool = False


@dataclass(frozen=True, slots=True)
class ChosenBlocks:
    """Blocks that go before the table, for each kernel; None = the table's."""

    forward: Blocks | None = None
    rows: Blocks | None = None
    keys: Blocks | None = None


SHIPPED = ChosenBlocks()

# By kernel and the larger of the padded head dimensions, for operands of two bytes.
_TABLE: dict[tuple[Kernel, int], dict[Reach, Blocks]] = {
    ("forward", 64): {
        "short": Blocks(64, 64, 4, 3, True),
        "window": Blocks(64, 64, 4, 3, True),
        "all": Blocks(128, 64, 8, 3, True),
    },
    ("forward", 128): {
        "short": Blocks(64, 32, 4, 3),
        "window": Blocks(64, 64, 4, 3),
        "all": Blocks(64, 64, 4, 3),
    },
    ("forward", 256): {
        "short": Blocks(64, 32, 8, 2),
        "window": Blocks(64, 32, 8, 2),
        "all": Blocks(128, 32, 8, 2),
    },
    ("rows", 64): {
        "short": Blocks(64, 32, 4, 3),
        "window": Blocks(64, 32, 4, 3),
        "all": Blocks(64, 32, 4, 3),
    },
    ("rows", 128): {
        "short": Blocks(64, 32, 4, 2, True),
        "window": Blocks(64, 64, 4, 2, True),
        "all": Blocks(128, 64, 8, 3),
    },
    ("rows", 256): {
        "short": Blocks(64, 32, 8, 2),
        "window": Blocks(64, 32, 8, 2),
        "all": Blocks(64, 32, 8, 2),
    },
    ("keys", 64): {
        "short": Blocks(32, 64, 4, 3, True),
        "window": Blocks(32, 64, 4, 3, True),
        "all": Blocks(32, 64, 4, 3),
    },
    ("keys", 128): {
        "short": Blocks(32, 64, 4, 3, True),
        "window": Blocks(32, 64, 4, 3),
        "all": Blocks(64, 128, 8, 3, True),
    },
    ("keys", 256): {
        "short": Blocks(32, 64, 8, 2),
        "window": Blocks(32, 64, 8, 2),
        "all": Blocks(32, 64, 8, 2),
    },
}
# Full attention over short sequences: few tiles a block, so wide blocks and one loop.
BRIEF = 2048  # tokens of the average sequence, up to which that holds
_BRIEF: dict[tuple[Kernel, int], Blocks] = {("forward", 128): Blocks(128, 64, 8, 3, True)}
# A relative bias wants registers of its own: for its gathers, and to gather its gradient.
_BIASED: dict[tuple[Kernel, int], Blocks] = {
    ("forward", 64): Blocks(64, 64, 4, 2),
    ("forward", 128): Blocks(64, 32, 4, 2),
    ("forward", 256): Blocks(64, 32, 8, 2),
    ("rows", 64): Blocks(64, 32, 4, 2),
    ("rows", 128): Blocks(64, 32, 4, 2, True),
    ("rows", 256): Blocks(64, 16, 8, 2, True),
    ("keys", 64): Blocks(32, 64, 4, 2),
    ("keys", 128): Blocks(32, 64, 8, 2),
    ("keys", 256): Blocks(32, 64, 8, 2, True),
}
# Float32 operands take twice the room, and IEEE products run on the ordinary units: small blocks.
_SINGLE = Blocks(32, 32, 4, 2)


def reach_of(mask: MaskSpec) -> Reach:
    """Return how far a history row sees, as far as block sizes depend on it."""
    if not mask.local_window:
        return "all"
    return "short" if mask.local_window + mask.global_size <= SHORT else "window"


def blocks_for(
    kernel: Kernel,
    mask: MaskSpec,
    padded: int,
    itemsize: int,
    *,
    biased: bool = False,
    average: float = float("inf"),
    chosen: ChosenBlocks = SHIPPED,
) -> Blocks:
    """Return the block sizes of `kernel` for heads of `padded` numbers of `itemsize` bytes.

    `average` is the length of a sequence; the longest one the host does not know.
    """
    given: Blocks | None = getattr(chosen, kernel)
    if given is not None:
        return given
    if itemsize > 2:
        return _SINGLE
    if biased:
        return _BIASED[kernel, max(padded, 64)]
    key, reach = (kernel, max(padded, 64)), reach_of(mask)
    if reach == "all" and average <= BRIEF and key in _BRIEF:
        return _BRIEF[key]
    return _TABLE[key][reach]


def candidates(kernel: Kernel, padded: int) -> list[Blocks]:
    """Return what is worth measuring for `kernel` and operands of two bytes: what leaves its sums in registers."""
    found = []
    for rows, keys, warps, stages in itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (2, 3)):
        threads = 32 * warps
        sums = rows * padded if kernel != "keys" else 2 * keys * padded
        if sums <= 128 * threads and rows * keys <= 64 * threads:
            found += [Blocks(rows, keys, warps, stages, joined) for joined in (False, True)]
    return found
