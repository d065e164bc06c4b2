"""What a backbone gives a head, whatever is inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Features:
    """Features of a batch of images.

    `patches` (B, N, C): one row a place of the image, in reading order, without special tokens.
    `summary` (B, C): the class token, or None for a backbone that has none.
    """

    patches: Tensor
    summary: Tensor | None = None

    @classmethod
    def of_map(cls, map_BCHW: Tensor) -> Features:
        """Return the features of a convolutional map (B, C, H, W)."""
        return cls(map_BCHW.flatten(2).transpose(1, 2))


class Backbone(Protocol):
    """A module from normalised images (B, channels, H, W) to `Features`, in stages from pixels to the top."""

    width: int
    """C, the width of its features."""
    channels: int
    """Channels of the images it reads."""
    has_summary: bool
    """Whether it has a class token."""

    def __call__(self, images_BCHW: Tensor) -> Features: ...

    def stages(self) -> Sequence[Stage]:
        """Return its parts in the order of the computation; together they hold every parameter once."""
        ...


@dataclass(frozen=True)
class Stage:
    """One part of a backbone: its own parameters, by name within the backbone, and the modules that hold a mode."""

    name: str
    parameters: dict[str, nn.Parameter]
    modules: tuple[nn.Module, ...]
