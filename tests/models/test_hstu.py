"""The HSTU layer equals a transcription of its equations, for every option."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longview.errors import InputError
from longview.models.hstu import EPSILON, HSTULayer, HSTUStack, Layout
from longview.models.layer_config import AttentionConfig, LayerConfig

LENGTHS = [5, 1, 8]
WIDTH, HEADS, MAX_LENGTH = 12, 3, 8
ATTENTIONS = [
    {},
    {"local_window": 3},
    {"local_window": 2, "global_size": 2, "global_mode": "prefix"},
    {"local_window": 3, "global_size": 2, "global_mode": "recent"},
    {"position_bias": True},
    {"position_bias": True, "time_bias": True, "local_window": 4},
]
LAYERS = [
    dict(zip(("activation", "output", "norm", "alpha"), chosen, strict=True))
    for chosen in itertools.product(("uvqk", "u"), ("gated", "concat"), ("row", "head"), ("sqrt", "linear"))
]


def build(layer: dict[str, object], attention: dict[str, object]) -> HSTULayer:
    torch.manual_seed(0)
    made = HSTULayer(
        WIDTH, HEADS, MAX_LENGTH, 0.0, LayerConfig(qk_dim=5, v_dim=3, **layer), AttentionConfig(**attention)
    )
    for parameter in made.parameters():  # nothing at a value where an error would not show
        torch.nn.init.normal_(parameter, std=0.5)
    return made.double().eval()


def batch() -> tuple[Tensor, Layout]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(LENGTHS), WIDTH, generator=generator, dtype=torch.float64)
    stamps = torch.randint(0, 10_000, (sum(LENGTHS),), generator=generator)
    return x, Layout(torch.tensor([0, *itertools.accumulate(LENGTHS)]), max(LENGTHS), stamps)


def by_hand(layer: HSTULayer, x: Tensor, stamps: Tensor) -> Tensor:
    """One sequence through the equations of `models/hstu.py`, a row and a head at a time."""
    n = len(x)
    config, attention = layer.config, layer.attention
    projected = layer.uvqk(F.layer_norm(x, (WIDTH,), layer.norm.weight, layer.norm.bias, EPSILON))
    u, v, q, k = projected.split(layer.sizes, dim=-1)
    u = F.silu(u)
    if config.activation == "uvqk":
        v, q, k = F.silu(v), F.silu(q), F.silu(k)
    alpha = 1 / math.sqrt(5) if config.alpha == "sqrt" else 1 / 5
    out = torch.zeros(n, HEADS, 3, dtype=x.dtype)
    for i, j, h in itertools.product(range(n), range(n), range(HEADS)):
        window = attention.local_window == 0 or i - j < attention.local_window
        prefix = attention.global_mode == "prefix" and j < attention.global_size
        recent = attention.global_mode == "recent" and i >= n - attention.global_size
        if j > i or not (window or prefix or recent):
            continue
        z = alpha * (q[i, h * 5 : h * 5 + 5] @ k[j, h * 5 : h * 5 + 5])
        if layer.position_bias is not None:
            z = z + layer.position_bias[h, min(i - j, MAX_LENGTH - 1)]
        if layer.time_bias is not None:
            bucket = int(math.log(max(abs(int(stamps[i] - stamps[j])), 1)) / 0.301)
            z = z + layer.time_bias[h, min(bucket, layer.time_bias.shape[1] - 1)]
        out[i, h] += F.silu(z) * v[j, h * 3 : h * 3 + 3] / MAX_LENGTH
    flat = out.flatten(1)
    weight, bias = layer.norm_attention.weight, layer.norm_attention.bias
    normed = F.layer_norm(out if config.norm == "head" else flat, weight.shape, weight, bias, EPSILON).reshape(n, -1)
    gated = torch.cat([u, flat, normed * u], -1) if config.output == "concat" else normed * u
    return x + layer.output(gated)


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
@pytest.mark.parametrize("layer", LAYERS[::3], ids=str)
def test_layer_equals_its_equations(layer: dict[str, object], attention: dict[str, object]) -> None:
    made, (x, layout) = build(layer, attention), batch()
    out = made(x, layout)
    assert layout.timestamps is not None
    for start, end in itertools.pairwise(layout.offsets.tolist()):
        expected = by_hand(made, x[start:end], layout.timestamps[start:end])
        torch.testing.assert_close(out[start:end], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
def test_newest_row_equals_the_full_pass(attention: dict[str, object]) -> None:
    x, layout = batch()
    stack = HSTUStack([build(layer, attention) for layer in LAYERS[:2]])
    torch.testing.assert_close(stack.newest(x, layout), stack(x, layout)[layout.offsets[1:] - 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", [a for a in ATTENTIONS if "position_bias" not in a], ids=str)
def test_context_and_targets_follow_the_mask(attention: dict[str, object]) -> None:
    """Candidates see context, history and themselves; nothing sees them; history sees the context."""
    x, layout = batch()
    context, targets = torch.tensor([1, 0, 2]), torch.tensor([2, 0, 3])
    layout = replace(layout, context_lengths=context, target_lengths=targets)
    made = build({}, attention)
    out, start = made(x, layout), int(layout.offsets[2])
    mask = made.mask.dense(2, 3, 3)
    for changed in range(8):  # the last sequence: two context tokens, three events, three candidates
        again = x.clone()
        again[start + changed] += torch.arange(WIDTH)  # a shift alone the norm would take away
        moved = (made(again, layout) != out).any(1)
        assert moved[start:].tolist() == mask[:, changed].tolist()
        assert not moved[:start].any()
    stack = HSTUStack([made, build({}, attention)])
    newest = stack(x, layout)[layout.offsets[1:] - 1 - targets]
    torch.testing.assert_close(stack.newest(x, layout), newest, rtol=1e-9, atol=1e-9)


def test_a_bias_by_distance_refuses_candidates() -> None:
    x, layout = batch()
    layout = replace(layout, target_lengths=torch.tensor([2, 0, 3]))
    with pytest.raises(InputError, match="order of the candidates"):
        build({}, {"position_bias": True})(x, layout)


def test_a_later_event_cannot_change_an_earlier_row() -> None:
    x, layout = batch()
    made = build({}, {"position_bias": True})
    before = made(x, layout)
    changed = x.clone()
    changed[4] += 1  # the newest event of the first sequence
    after = made(changed, layout)
    assert torch.equal(before[:4], after[:4])
    assert torch.equal(before[5:], after[5:])
    assert not torch.equal(before[4], after[4])


def test_gradients_reach_every_parameter() -> None:
    x, layout = batch()
    made = build({}, {"position_bias": True, "time_bias": True})
    made(x, layout).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_weights_start_xavier_and_biases_at_zero() -> None:
    layer = HSTULayer(64, 2, 10, 0.0, LayerConfig(), AttentionConfig(position_bias=True))
    bound = math.sqrt(6 / (64 + 256))
    assert layer.uvqk.weight.abs().max() <= bound
    assert layer.uvqk.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not layer.uvqk.bias.any()
    assert not layer.output.bias.any()
