"""Parameter groups, the schedule, the weight average and clipping."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from longview.data.batches import JaggedBatch, TrainingBatches
from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.ops.embedding import RowwiseAdamW, embedding_lookup
from longview.training.config import OptimiserConfig, RunConfig
from longview.training.optimiser import WeightAverage, build_optimiser, clip_gradients, rate_at
from longview.training.trainer import Trainer

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


def test_the_average_takes_running_statistics_in_where_it_is_told_to() -> None:
    norm = torch.nn.BatchNorm1d(2)
    both = [WeightAverage(norm, decay=0.5, statistics=statistics) for statistics in (True, False)]
    assert norm.running_mean is not None
    norm.running_mean += 1
    for average in both:
        average.update(100)
    assert [a.model.running_mean.tolist() for a in both if a.model.running_mean is not None] == [[0.5, 0.5], [0.0, 0.0]]


def test_clipping_scales_to_the_norm_and_returns_the_norm_before() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(layer, 10.0) == 5
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[3.0, 4.0]]))
    assert clip_gradients(layer, 1.0) == 5
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.6, 0.8]]))
    assert clip_gradients(layer, None).item() == pytest.approx(1, abs=1e-5)


def test_clipping_counts_a_sparse_gradient_as_the_dense_one_it_stands_for() -> None:
    gradients = {}
    for sparse in (True, False):
        model = torch.nn.Sequential(torch.nn.Embedding(4, 2), torch.nn.Linear(2, 1, bias=False))
        table, weight = model.parameters()
        torch.nn.init.ones_(weight)
        rows = embedding_lookup(table, torch.tensor([1, 3, 1]), sparse=sparse)
        (rows.sum() + 3 * weight.sum()).backward()
        norm = clip_gradients(model, 1.0, RowwiseAdamW(table) if sparse else None)
        assert norm.item() == pytest.approx((2 * 4 + 2 * 1 + 2 * 9) ** 0.5)
        assert table.grad is not None
        gradients[sparse] = table.grad.to_dense()
    torch.testing.assert_close(gradients[True], gradients[False])


ROWWISE = ("loss.kind=sampled", "loss.num_negatives=3", "optimiser.tables=rowwise")


def trainer(data: PreparedData, config: RunConfig) -> Trainer:
    torch.manual_seed(0)
    return Trainer(config, data, device=torch.device("cpu"), steps_per_epoch=4)


def first_batch(data: PreparedData) -> JaggedBatch:
    return next(TrainingBatches(data, max_length=8, seed=0, batch_size=4).epoch(0))


class TestRowwiseTables:
    def test_a_first_step_moves_the_touched_rows_as_dense_adamw_does_and_no_others(
        self, tiny: PreparedData, tiny_config: Configure
    ) -> None:
        settings = ("loss.negative_groups=1", "model.embedding.dropout=0", "model.dropout=0")
        start = trainer(tiny, tiny_config()).model.embedding.items.weight.detach().clone()
        weights, norms = {}, {}
        for tables in ("rowwise", "dense"):
            one = trainer(tiny, tiny_config(*ROWWISE, *settings, f"optimiser.tables={tables}"))
            _, norms[tables] = one.step(first_batch(tiny), 0)
            weights[tables] = one.model.embedding.items.weight.detach()
            assert one.model.embedding.items.weight.grad is None
        torch.testing.assert_close(norms["rowwise"], norms["dense"])
        torch.testing.assert_close(weights["rowwise"], weights["dense"], rtol=1e-4, atol=1e-6)
        moved = (weights["rowwise"] != start).any(1)
        assert 0 < moved.sum() < tiny.num_items

    def test_a_checkpoint_holds_its_state_and_the_next_step_is_the_same(
        self, tiny: PreparedData, tiny_config: Configure
    ) -> None:
        one, other = (trainer(tiny, tiny_config(*ROWWISE)) for _ in range(2))
        batch = first_batch(tiny)
        for number in range(3):
            one.step(batch, number)
        saved = {name: value.clone() for name, value in one.tensors().items()}
        assert {"table.first", "table.second", "table.steps"} <= saved.keys()
        assert saved["table.steps"] == 3
        expected = one.step(batch, 3)
        other.load_tensors(saved)
        assert all(torch.equal(a, b) for a, b in zip(other.step(batch, 3), expected, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(other.tensors().values(), one.tensors().values(), strict=True))

    def test_the_schedule_reaches_the_table(self, tiny: PreparedData, tiny_config: Configure) -> None:
        one = trainer(tiny, tiny_config(*ROWWISE, "optimiser.rate=1", "optimiser.warmup_steps=10"))
        one.step(first_batch(tiny), 2)
        assert one.table_optimiser is not None
        assert one.table_optimiser.rate == pytest.approx(0.3)

    def test_what_touches_every_row_is_refused(self, tiny: PreparedData, tiny_config: Configure) -> None:
        with pytest.raises(InputError, match=r"set loss\.kind sampled, or optimiser\.tables dense"):
            trainer(tiny, tiny_config(*ROWWISE, "loss.kind=full"))
        with pytest.raises(InputError, match=r"set model\.normalise false"):
            trainer(tiny, tiny_config(*ROWWISE, "model.normalise=true"))
