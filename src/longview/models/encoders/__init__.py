"""Image encoders: pixels to one embedding an image."""

from longview.models.encoders.convnet import ConvNet, ConvNetConfig
from longview.models.encoders.encoder import EncoderConfig, ImageEncoder
from longview.models.encoders.head import EmbeddingHead, HeadConfig
from longview.models.encoders.pixels import PixelInput, PreprocessConfig
from longview.models.encoders.rates import ParameterGroup, RatesConfig, optimiser_groups, parameter_groups
from longview.models.encoders.transformer import TransformersBackbone, TransformersConfig

__all__ = [
    "ConvNet",
    "ConvNetConfig",
    "EmbeddingHead",
    "EncoderConfig",
    "HeadConfig",
    "ImageEncoder",
    "ParameterGroup",
    "PixelInput",
    "PreprocessConfig",
    "RatesConfig",
    "TransformersBackbone",
    "TransformersConfig",
    "optimiser_groups",
    "parameter_groups",
]
