"""The fused layer as the model calls it, attention kernels inside, against the layer operation by operation."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from longview.models.hstu import HSTULayer, Layout
from longview.models.layer_config import AttentionConfig, LayerConfig

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [1, 40, 0, 23]
WIDTH, HEADS = 32, 2


def build(attention: AttentionConfig, layer: LayerConfig) -> HSTULayer:
    torch.manual_seed(0)
    made = HSTULayer(WIDTH, HEADS, 64, 0.0, layer, attention)
    for parameter in made.parameters():  # nothing at a value where an error would not show
        torch.nn.init.normal_(parameter, std=0.3)
    return made.to(DEVICE).train()


def run(layer: HSTULayer, **others: list[int]) -> list[Tensor]:
    """Return the output and the gradients of input and parameters; `others`: lengths of context and targets."""
    x = torch.randn(sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(1)).to(DEVICE).requires_grad_()
    given = {name: torch.tensor(lengths, device=DEVICE) for name, lengths in others.items()}
    layout = Layout(torch.tensor([0, *itertools.accumulate(LENGTHS)], device=DEVICE), max(LENGTHS), **given)
    out = layer(x, layout)
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    return [out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], d_out)]


@pytest.mark.parametrize("layer", [LayerConfig(), LayerConfig(activation="u", norm="head", alpha="linear")])
@pytest.mark.parametrize("recompute", ["none", "cheap", "all"])
@pytest.mark.parametrize("attention", [AttentionConfig(), AttentionConfig(local_window=9, global_size=5)])
def test_it_is_the_same_layer(
    monkeypatch: pytest.MonkeyPatch, attention: AttentionConfig, layer: LayerConfig, recompute: str
) -> None:
    made = build(attention, layer.model_copy(update={"recompute": recompute}))
    monkeypatch.setattr(HSTULayer, "why_not_fused", lambda *_: "left out, to compare with")
    expected = run(made)
    monkeypatch.setattr(HSTULayer, "why_not_fused", lambda *_: None)
    for found, wanted in zip(run(made), expected, strict=True):
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_it_is_the_same_layer_with_context_and_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(AttentionConfig(local_window=9, global_size=5, target_scope="semi_local"), LayerConfig())
    lengths = {"context_lengths": [0, 3, 0, 2], "target_lengths": [1, 5, 0, 4]}
    monkeypatch.setattr(HSTULayer, "why_not_fused", lambda *_: "left out, to compare with")
    expected = run(made, **lengths)
    assert not torch.allclose(expected[0], run(made)[0], atol=1e-3)
    monkeypatch.setattr(HSTULayer, "why_not_fused", lambda *_: None)
    for found, wanted in zip(run(made, **lengths), expected, strict=True):
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_it_is_fused_on_a_gpu_alone_and_says_why_not_elsewhere() -> None:
    x = torch.zeros(1, WIDTH)
    assert "on cpu" in str(build(AttentionConfig(), LayerConfig()).why_not_fused(x))
    if DEVICE == "cuda":
        x = x.cuda()
        assert build(AttentionConfig(), LayerConfig()).why_not_fused(x) is None
        assert "bias" in str(build(AttentionConfig(position_bias=True), LayerConfig()).why_not_fused(x))
        assert "concat" in str(build(AttentionConfig(), LayerConfig(output="concat")).why_not_fused(x))
