"""A layer that starts as a look-up finds an earlier event like the newest, and hands on what was there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longview.models.hstu import HSTULayer, Layout
from longview.models.layer_config import AttentionConfig, LayerConfig
from longview.models.layer_start import OPEN, OWN_SCORE

WIDTH = 256


def layer(start: str = "mimetic", heads: int = 1, **settings: object) -> HSTULayer:
    torch.manual_seed(0)
    config = LayerConfig(start=start, activation="u", scale_length=1, **settings)
    return HSTULayer(WIDTH, heads, 200, 0.0, config, AttentionConfig()).eval()


def events(count: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("alpha", ["linear", "sqrt"])
@pytest.mark.parametrize("settings", [{}, {"qk_dim": 48, "v_dim": 96}], ids=str)
@torch.no_grad()
def test_a_row_scores_itself_above_strangers(heads: int, alpha: str, settings: dict[str, object]) -> None:
    made = layer(heads=heads, alpha=alpha, **settings)
    _, _, q, k = made._project(events(100))
    scores = made.alpha * made._heads(q).transpose(0, 1) @ made._heads(k).permute(1, 2, 0)
    own = scores.diagonal(dim1=1, dim2=2)
    assert own.mean() == pytest.approx(OWN_SCORE, rel=0.1)
    assert (own > scores.masked_fill(torch.eye(100, dtype=torch.bool), -9).amax(2)).all()


@pytest.mark.parametrize("output", ["gated", "concat"])
@torch.no_grad()
def test_what_was_beside_the_like_is_handed_on(output: str) -> None:
    """Of thirty pairs (topic + choice) one has the topic asked for: the layer adds its choice rather than others."""
    topics, choices = events(60).split(30)
    layout = Layout(torch.tensor([0, 31]), 31, None)
    places = {}
    for start in ("mimetic", "random"):
        made, found = layer(start, output=output), []
        for asked in range(30):
            x = torch.cat([topics + choices, topics[asked : asked + 1]])
            added = (made(x, layout) - x)[-1]
            found.append((choices @ added).argsort(descending=True).tolist().index(asked))
        places[start] = sum(found) / 30
    assert places["mimetic"] < 6
    assert 9 < places["random"] < 20, "by chance it would be 14.5"


def test_the_gate_is_open_and_all_else_is_drawn_as_at_random() -> None:
    made, plain = layer(), layer("random")
    gate, values = made.sizes[0], made.sizes[1]
    assert (made.uvqk.bias[:gate] == OPEN).all()
    assert (made.uvqk.bias[gate:] == 0).all()
    torch.testing.assert_close(made.uvqk.weight[: gate + values], plain.uvqk.weight[: gate + values])
    torch.testing.assert_close(made.output.weight, plain.uvqk.weight[gate : gate + values].T)
