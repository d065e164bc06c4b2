"""Block sizes from a configuration: what the kernels get, and what is refused."""

from __future__ import annotations

import pytest
import torch

from longview.config import parse
from longview.errors import InputError
from longview.models.hstu import HSTULayer, Layout
from longview.models.kernel_blocks import KernelBlocks
from longview.models.layer_config import AttentionConfig, LayerConfig
from longview.ops.attention import Blocks, ChosenBlocks


def test_left_out_they_are_those_that_ship() -> None:
    assert AttentionConfig().blocks.chosen() == ChosenBlocks()


def test_what_the_tuner_prints_is_what_the_kernels_get() -> None:
    blocks = parse(KernelBlocks, {"forward": [64, 32, 4, 3, True]}, "test").chosen()
    assert blocks == ChosenBlocks(forward=Blocks(64, 32, 4, 3, True))


@pytest.mark.parametrize(
    "sizes",
    [[48, 32, 4, 3, True], [8, 32, 4, 3, True], [64, 512, 4, 3, True], [64, 64, 3, 3, True], [64, 64, 4, 9, True]],
)
def test_sizes_that_no_kernel_has_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="rows"):
        parse(KernelBlocks, {"rows": [*sizes, True]}, "test")


def test_on_a_cpu_they_change_nothing() -> None:
    torch.manual_seed(0)
    layout, x = Layout(torch.tensor([0, 5, 9]), 5), torch.randn(9, 16)
    layers = []
    for blocks in (KernelBlocks(), KernelBlocks(forward=(32, 32, 4, 2, False))):
        torch.manual_seed(1)
        layers.append(HSTULayer(16, 2, 8, 0.0, LayerConfig(), AttentionConfig(blocks=blocks)))
    assert torch.equal(layers[0](x, layout), layers[1](x, layout))
