"""Tile sizes of the product kernels, row blocks of the elementwise ones, and how many programs run them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

ROOMY = (9, 10)  # major compute capabilities with 227 KB of shared memory a program
HOPPER = 9
GLUON = ("3.6",)  # versions of Triton whose Gluon, still experimental, the kernels with staying rows are written for
BLOCK = 128  # rows and columns of a tile where one operand stays in shared memory
PART = 64  # tokens of a tile, and columns of what a group of warps keeps of it, where weights stay in registers, too
WIDEST = 512  # columns of a row that fit beside the stages
SHARED = 226 << 10  # bytes for the operand that stays, the stages of the other and the tile that leaves
IN_PROJECTION = {"depth": 64, "leaving": 1}  # see Staying
SHARE = 4  # items of work for each multiprocessor, if the columns can be cut that fine


@dataclass(frozen=True)
class Tiling:
    """One program computes rows × columns of the result, `depth` of the inner dimension at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    group: int = 1  # row blocks that share a column block of the weights before it moves on
    resident: int = 0  # programs on each multiprocessor that walk the tiles; 0 = a program a tile
    flatten: bool = False  # with `resident`: one pipeline over all tiles of a program
    parts: int = 1  # 1, 2 or 4: the result leaves in so many parts, one after another in the same shared memory

    def launch(self) -> dict[str, Any]:
        """Return the launch options of Triton."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    def constants(self) -> dict[str, Any]:
        """Return the compile-time arguments both product kernels share."""
        return {
            "BM": self.rows,
            "BN": self.columns,
            "BK": self.depth,
            "GROUP": self.group,
            "FLATTEN": self.flatten,
            "PARTS": self.parts,
        }

    def leaving(self) -> list[int]:
        """Return the rows and columns of a part of the result."""
        return [self.rows, self.columns // self.parts]

    def programs(self, rows: int, columns: int, device: torch.device) -> int:
        """Return the size of the grid for a result of `rows` × `columns`."""
        tiles = -(-rows // self.rows) * -(-columns // self.columns)
        return min(tiles, self.resident * processors(device)) if self.resident else tiles


def processors(device: torch.device) -> int:
    """Return the multiprocessors of `device`; 2 stand for the interpreter's."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def roomy(device: torch.device) -> bool:
    """Return whether a program may use the shared memory the large tiles need (227 KB)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in ROOMY


@dataclass(frozen=True)
class Walk:
    """How an elementwise kernel goes over whole rows."""

    elements: int  # held at once by a program
    warps: int
    resident: int = 0  # programs on each multiprocessor that walk the rows; 0 = a program a block of rows

    def rows(self, padded: int) -> int:
        """Return the rows of a block, each `padded` (a power of two) columns."""
        return max(1, self.elements // padded)

    def programs(self, rows: int, padded: int, device: torch.device) -> int:
        """Return the size of the grid for `rows`."""
        blocks = -(-rows // self.rows(padded))
        return min(blocks, self.resident * processors(device)) if self.resident else blocks


@dataclass(frozen=True)
class Staying:
    """How the projection is launched where rows stay in shared memory (`gluon_project.py`)."""

    stages: int  # of the other operand: one is multiplied, one given back, the others filled
    depth: int  # columns of a chunk of the inner dimension
    leaving: int  # tiles that leave at a time
    parts: int  # of the columns, each work of its own

    def constants(self) -> dict[str, int]:
        """Return the compile-time arguments."""
        return {"STAGES": self.stages, "LEAVING": self.leaving, "PARTS": self.parts}

    def programs(self, rows: int, device: torch.device) -> int:
        """Return the size of the grid."""
        return min(-(-rows // BLOCK) * self.parts, processors(device))


def staying(
    product: torch.dtype, rows: int, inner: int, columns: int, device: torch.device, *, depth: int, leaving: int
) -> Staying | None:
    """Return how the product (rows × inner) @ (inner × columns) is launched with staying rows, None where it is not."""
    parts = parts_of(product, rows, inner, columns, device)
    return None if parts is None else Staying(stages_for(inner, depth, leaving), depth, leaving, parts)


def parts_of(product: torch.dtype, rows: int, inner: int, columns: int, device: torch.device) -> int | None:
    """Return into how many parts the columns of the product (rows × inner) @ (inner × columns) must be cut.

    None where products with an operand that stays cannot run or don't pay: other GPUs than Hopper, other versions of
    Triton, float32, wide or odd sizes, too few rows to keep every multiprocessor busy.
    """
    fits = inner % BLOCK == 0 and BLOCK < inner <= WIDEST and columns % (2 * BLOCK) == 0
    if not fits or product == torch.float32 or why_no_staying(device) is not None:
        return None
    blocks, most = -(-rows // BLOCK), columns // (2 * BLOCK)
    return next((p for p in (1, 2, 4) if most % p == 0 and blocks * p >= SHARE * processors(device)), None)


def why_no_staying(device: torch.device | str) -> str | None:
    """Return why products with an operand that stays cannot run on `device`, in a sentence, or None where they can."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"they are written for Hopper GPUs, and the device is {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major != HOPPER:
        return f"they are written for Hopper GPUs (compute capability {HOPPER}.0), and this one has {major}.{minor}"
    import triton

    if not triton.__version__.startswith(GLUON):
        return f"they are written for Triton {', '.join(GLUON)}, and {triton.__version__} is installed"
    return None


def stages_for(inner: int, depth: int, leaving: int) -> int:
    """Return the stages that fit beside the operand that stays and `leaving` tiles of 16-bit numbers."""
    chunks = inner // depth
    free = SHARED - 2 * BLOCK * (inner + BLOCK * leaving)
    return max(s for s in (3, 4) if chunks % s == 0 and s * 2 * BLOCK * depth <= free)


def ring_of(inner: int) -> int:
    """Return the chunks of 16-bit tokens that fit beside half the weights of a program and the tile that leaves.

    They are those of whole tiles: see `gluon_output.py`.
    """
    chunks, chunk = inner // PART, 2 * PART * PART
    return (SHARED - 2 * chunks * chunk - 4 * chunk) // (chunks * chunk) * chunks
