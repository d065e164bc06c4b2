"""The image encoder: preprocessing, backbone and head, with the part of it that is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from longview.config import Config
from longview.errors import InputError
from longview.models.encoders.convnet import ConvNet, ConvNetConfig
from longview.models.encoders.features import Stage
from longview.models.encoders.head import HeadConfig
from longview.models.encoders.pixels import PixelInput, PreprocessConfig, preprocess_of
from longview.models.encoders.transformer import TransformersBackbone, TransformersConfig


class EncoderConfig(Config):
    """A backbone, what it reads and what is made of its features."""

    backbone: Annotated[ConvNetConfig | TransformersConfig, Field(discriminator="kind")] = ConvNetConfig()
    preprocess: PreprocessConfig | None = Field(
        default=None, description="default: what the backbone's directory says; its image size; 28 grey, 84 RGB"
    )
    head: HeadConfig = HeadConfig()
    freeze: Literal["none", "backbone"] | Annotated[int, Field(ge=1)] = Field(
        default="none", description="what does not learn: nothing, the backbone, or its first N stages"
    )

    def build(self) -> ImageEncoder:
        return ImageEncoder(self)


class ImageEncoder(nn.Module):
    """Images to embeddings (B, dimension) float32.

    Images are (B, 1 or 3, H, W), uint8, or floating point of 0 to 1 as an `ImageBatch` has them; the encoder frames
    and normalises them as its config says.

    Example:
        >>> import torch
        >>> encoder = EncoderConfig().build().eval()
        >>> encoder(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape
        torch.Size([2, 64])

    Raises:
        InputError: parts that do not fit each other, or more frozen stages than the backbone has.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone: ConvNet | TransformersBackbone = config.backbone.build()
        self.preprocess = PixelInput(config.preprocess or _default(self.backbone), self.backbone.channels)
        self.head = config.head.build(self.backbone.width, self.backbone.has_summary)
        self.dimension = self.head.dimension
        for stage in self.frozen_stages():
            for parameter in stage.parameters.values():
                parameter.requires_grad_(False)
        self.train()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return (B, dimension), of length 1 where the head normalises."""
        return self.head(self.backbone(self.preprocess(images_BCHW)))  # type: ignore[no-any-return]

    def frozen_stages(self) -> Sequence[Stage]:
        """Return the stages of the backbone that do not learn."""
        freeze = self.config.freeze
        if freeze == "none":
            return []
        stages = self.backbone.stages()
        count = len(stages) if freeze == "backbone" else freeze
        if count > len(stages):
            names = ", ".join(stage.name for stage in stages)
            raise InputError(f"encoder.freeze {count}: the backbone has {len(stages)} stages ({names})")
        return stages[:count]

    def train(self, mode: bool = True) -> ImageEncoder:
        """Switch to training mode, all but the frozen stages: their running statistics and dropout stay as well."""
        super().train(mode)
        if mode:
            for stage in self.frozen_stages():
                for module in stage.modules:
                    module.eval()
        return self

    def resolved(self) -> EncoderConfig:
        """Return the config that builds this encoder anew without any other file: `load_encoder` brings the weights."""
        backbone = self.backbone.config
        if isinstance(self.backbone, TransformersBackbone):
            backbone = TransformersConfig(architecture=self.backbone.architecture)
        return self.config.model_copy(update={"backbone": backbone, "preprocess": self.preprocess.config})


def _default(backbone: ConvNet | TransformersBackbone) -> PreprocessConfig:
    if isinstance(backbone, ConvNet):
        return PreprocessConfig(size=28 if backbone.channels == 1 else 84, channels=backbone.config.channels)
    if backbone.config.directory is not None:
        return preprocess_of(backbone.config.directory)
    return PreprocessConfig(size=backbone.image_size or 224, channels=3 if backbone.channels == 3 else 1, fit="crop")
