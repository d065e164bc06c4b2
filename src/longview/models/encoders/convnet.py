"""A small convolutional backbone that trains from scratch: 3×3 convolution, norm, ReLU, 2×2 max pooling, four times.

Source: the embedding of Vinyals et al., Matching Networks, arXiv 1606.04080, which Omniglot results commonly use.
Blocks of more than one convolution add what they were given to what they make of it (He et al., arXiv 1512.03385).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from longview.config import Config
from longview.errors import InputError
from longview.models.encoders.features import Features, Stage


class ConvNetConfig(Config):
    """Blocks of one width; every block halves height and width."""

    kind: Literal["convnet"] = "convnet"
    channels: Literal[1, 3] = Field(default=1, description="1 = grey, 3 = RGB")
    width: int = Field(default=64, ge=1)
    blocks: int = Field(default=4, ge=1)
    depth: int = Field(
        default=1, ge=1, description="convolutions of each block after the first; with two or more, blocks are residual"
    )
    norm: Literal["batch", "group"] = Field(default="batch", description="group does not depend on the batch")
    groups: int = Field(default=8, ge=1, description="of group norm; divides the width")

    @model_validator(mode="after")
    def _groups_divide(self) -> ConvNetConfig:
        if self.norm == "group" and self.width % self.groups:
            raise ValueError(f"groups {self.groups} does not divide width {self.width}")
        return self

    def build(self) -> ConvNet:
        return ConvNet(self)


class ConvNet(nn.Module):
    """Images (B, channels, H, W) to features of H / 2^blocks × W / 2^blocks places."""

    has_summary = False

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        self.config, self.width, self.channels = config, config.width, int(config.channels)
        first, later = self._block(self.channels), range(1, config.blocks)
        if config.depth == 1:
            self.blocks = nn.ModuleList([first, *(self._block(config.width) for _ in later)])
        else:
            self.blocks = nn.ModuleList([first, *(ResidualBlock(config) for _ in later)])

    def forward(self, images_BCHW: Tensor) -> Features:
        """Return (B, places, width).

        Raises:
            InputError: other channels, or images that are smaller than one place.
        """
        smallest = 2**self.config.blocks
        if images_BCHW.shape[1] != self.channels or min(images_BCHW.shape[2:]) < smallest:
            raise InputError(
                f"images {tuple(images_BCHW.shape)}: expected (batch, {self.channels}, height, width) with height and "
                f"width of at least {smallest}, as {self.config.blocks} blocks halve them; for smaller images raise "
                "encoder.preprocess.size or lower encoder.backbone.blocks"
            )
        for block in self.blocks:
            images_BCHW = block(images_BCHW)
        return Features.of_map(images_BCHW)

    def stages(self) -> Sequence[Stage]:
        """Return one stage a block."""
        return [
            Stage(
                f"block {number}",
                {f"blocks.{number}.{name}": parameter for name, parameter in block.named_parameters()},
                (block,),
            )
            for number, block in enumerate(self.blocks)
        ]

    def _block(self, channels: int) -> nn.Sequential:
        return nn.Sequential(*_convolution(channels, self.config), nn.ReLU(), nn.MaxPool2d(2))


class ResidualBlock(nn.Module):
    """`depth` convolutions with norms around a shortcut, and 2×2 max pooling: (B, C, H, W) to (B, C, H/2, W/2)."""

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(config.depth - 1):
            parts += [*_convolution(config.width, config), nn.ReLU()]
        self.branch = nn.Sequential(*parts, *_convolution(config.width, config))

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Return the pooled maps."""
        return functional.max_pool2d(functional.relu(maps_BCHW + self.branch(maps_BCHW)), 2)


def _convolution(channels: int, config: ConvNetConfig) -> tuple[nn.Module, nn.Module]:
    """Return a 3×3 convolution to the width of `config`, and its norm."""
    width = config.width
    convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)  # the norm has the bias
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return convolution, nn.BatchNorm2d(width) if config.norm == "batch" else nn.GroupNorm(config.groups, width)
