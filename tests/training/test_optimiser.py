"""Parameter groups, the schedule, the weight average and clipping."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from longview.training.config import OptimiserConfig, RunConfig
from longview.training.optimiser import WeightAverage, build_optimiser, clip_gradients, rate_at

Configure = Callable[..., RunConfig]


def test_weights_tables_and_biases_decay_apart(tiny_config: Configure) -> None:
    model = tiny_config("model.attention.position_bias=true").model.build(30)
    optimiser = build_optimiser(model, OptimiserConfig(weight_decay=0.1, embedding_weight_decay=0.01))
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    by_name = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert by_name["embedding.items.weight"] == 0.01
    assert by_name["stack.layers.0.uvqk.weight"] == 0.1
    for name in ("stack.layers.0.uvqk.bias", "stack.layers.0.norm.weight", "stack.layers.0.position_bias"):
        assert by_name[name] == 0.0
    assert len(decay) == len(list(model.parameters())), "every parameter is in exactly one group"


def test_tables_decay_like_weights_unless_told() -> None:
    table = torch.nn.Embedding(3, 2)
    optimiser = build_optimiser(table, OptimiserConfig(weight_decay=0.3))
    assert optimiser.param_groups[0]["weight_decay"] == 0.3


@pytest.mark.parametrize(("decay", "middle", "end"), [("none", 1.0, 1.0), ("linear", 0.55, 0.1), ("cosine", 0.55, 0.1)])
def test_the_rate_warms_up_then_decays_to_its_floor(decay: str, middle: float, end: float) -> None:
    config = OptimiserConfig(rate=1.0, warmup_steps=4, decay=decay, min_rate_ratio=0.1)  # type: ignore[arg-type]
    assert [rate_at(step, 104, config) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rate_at(54, 104, config) == pytest.approx(middle)
    assert rate_at(104, 104, config) == pytest.approx(end)
    assert rate_at(500, 104, config) == pytest.approx(end), "longer epochs than planned stay at the floor"


def test_the_average_follows_the_weights(tiny_config: Configure) -> None:
    model = tiny_config().model.build(30)
    average = WeightAverage(model, decay=0.5)
    weight, averaged = (m.embedding.items.weight for m in (model, average.model))
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 1
    average.update(100)
    torch.testing.assert_close(averaged, before + 0.5)
    average.update(0)  # at the start the average leans on the newest weights: decay 0.1
    torch.testing.assert_close(averaged, before + 0.95)
    assert not averaged.requires_grad


def test_clipping_scales_to_the_norm_and_returns_the_norm_before() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(layer, 10.0) == 5
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[3.0, 4.0]]))
    assert clip_gradients(layer, 1.0) == 5
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.6, 0.8]]))
    assert clip_gradients(layer, None).item() == pytest.approx(1, abs=1e-5)
