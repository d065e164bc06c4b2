"""Tile sizes of the product kernels, row blocks of the elementwise ones, and how many programs run them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

ROOMY = (9, 10)  # major compute capabilities with 227 KB of shared memory a program


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
