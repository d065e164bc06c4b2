"""Block sizes of the attention kernels, where those that ship are not the best for a GPU or a shape."""

from __future__ import annotations

from pydantic import Field, field_validator

from longview.config import Config
from longview.ops.attention import Blocks, ChosenBlocks

Sizes = tuple[int, int, int, int, bool]


class KernelBlocks(Config):
    """Rows, keys, warps, pipeline stages and joined loops of each kernel, as `longview bench tune` prints them.

    They change no result beyond the rounding of sums.
    """

    forward: Sizes | None = Field(default=None, description="of the forward kernel; null = those that ship")
    rows: Sizes | None = Field(default=None, description="of the gradient of q")
    keys: Sizes | None = Field(default=None, description="of the gradients of k and v")

    @field_validator("forward", "rows", "keys")
    @classmethod
    def _fits(cls, sizes: Sizes | None) -> Sizes | None:
        if sizes is None:
            return None
        *numbers, _ = sizes
        powers = all(number > 0 and number & (number - 1) == 0 for number in numbers[:3])
        if not powers or not (min(numbers[:2]) >= 16 and max(numbers[:2]) <= 256):
            raise ValueError(f"{list(sizes)}: rows and keys are powers of two from 16 to 256, warps a power of two")
        if not (numbers[2] <= 16 and 1 <= numbers[3] <= 8):
            raise ValueError(f"{list(sizes)}: at most 16 warps, and 1 to 8 stages")
        return sizes

    def chosen(self) -> ChosenBlocks:
        """Return them as the kernels take them."""
        forward, rows, keys = (None if x is None else Blocks(*x) for x in (self.forward, self.rows, self.keys))
        return ChosenBlocks(forward, rows, keys)
