"""Which part of every batch is this process's, where several train together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longview.errors import InputError

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """The sequences `rank`, `rank + world`, … of every batch; `total` sums a number over all `world` processes.

    `total` is a collective: every process must call it at the same place. The default is the whole of every batch.

    Example:
        >>> Share(rank=1, world=2).of(np.array([7, 3, 5])).tolist()
        [3]

    Raises:
        InputError: a rank that is not below the world size.
    """

    rank: int = 0
    world: int = 1
    total: Callable[[float], float] = float

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise InputError(f"rank {self.rank} of {self.world}: expected 0 to {self.world - 1}")

    def of(self, batch: Rows) -> Rows:
        """Return this process's part of `batch` (n,): empty where there are fewer sequences than processes."""
        return batch[self.rank :: self.world]
