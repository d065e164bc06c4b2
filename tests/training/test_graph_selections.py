"""Steps as CUDA graphs of models that select rows: truncation, streams, context tokens, candidates.

A padded batch whose selections keep a fixed number of rows has the loss and gradients of the batch it was. What needs a
GPU is skipped without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import cycle, islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longview.data.batches import JaggedBatch
from longview.data.dataset import PreparedData
from longview.data.padding import capacity_for, padded
from longview.models import hstu
from longview.models.ranker import Ranker
from longview.training import graph
from longview.training.config import RunConfig, resolve_config
from longview.training.goals import make_goal
from longview.training.trainer import Trainer
from tests.ranking_log import SETTINGS, write_ranking

CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LOSSES = {"full": (), "sampled": ("loss.kind=sampled", "loss.num_negatives=5", "loss.negative_groups=1")}
TRUNCATION = "model.truncation={length: 3, layers: 1}"
STREAMS = (
    "model.streams={liked: {actions: [like]}, rest: {actions: [none, buy], max_length: 3}, every: {actions: [all]}}"
)
CONTEXT = ("model.embedding.context=[taste, age]",)
MODELS: dict[str, tuple[str, ...]] = {
    "truncation": (TRUNCATION,),
    "truncation with positions and bias": (
        "model.truncation={length: 3, layers: 1, positions: true, attention: {position_bias: true, time_bias: true}}",
    ),
    "truncation of more than there is": ("model.truncation={length: 30, layers: 1}",),
    "streams": (STREAMS,),
    "a stream without events": ("model.streams={none: {actions: [5]}, every: {actions: [all]}}",),
    "streams, one truncated": (
        "model.streams={liked: {actions: [like], truncation: {length: 2, layers: 1}}, every: {actions: [all]}}",
    ),
    "streams, all truncated": (STREAMS, TRUNCATION),
    "context": CONTEXT,
    "context and a bias": (*CONTEXT, "model.attention.time_bias=true"),
    "context and truncation": (*CONTEXT, TRUNCATION),
    "context, streams and truncation": (*CONTEXT, STREAMS, TRUNCATION),
}
RANKED = {
    "candidates": (),
    "candidates, actions and context": (*CONTEXT, "model.embedding.actions=sum"),
    "candidates and truncation": (TRUNCATION,),
    "candidates that the second stage alone reads": (
        "model.truncation={length: 3, layers: 1, targets: second}",
        "model.embedding.time_gaps=previous",
    ),
    "candidates, streams, context and truncation": (*CONTEXT, STREAMS, TRUNCATION),
    "candidates from the catalogue": ("ranking.sampled=2", "ranking.tasks=[{name: like, action: like}]"),
}
CASES = [
    *(("retrieval", name, loss) for name in MODELS for loss in LOSSES),
    *(("ranking", name, "full") for name in RANKED),
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_ranking(tmp_path_factory.mktemp("data") / "shop", users=60)


def config_of(task: str, name: str, loss: str, *more: str) -> RunConfig:
    model = MODELS[name] if task == "retrieval" else RANKED[name]
    smooth = "optimiser.average_decay=0.9"
    return resolve_config("hstu-small", [*SETTINGS, f"task={task}", *LOSSES[loss], *model, smooth, *more])


def batches_of(config: RunConfig, data: PreparedData, count: int = 1) -> list[JaggedBatch]:
    return list(islice(cycle(make_goal(config, data).batches().epoch(0)), count))


def fixed(config: RunConfig, model: Any, batch: JaggedBatch) -> JaggedBatch:
    """Return the batch as a captured step sees it."""
    length = config.model.max_length
    filled = padded(batch, capacity_for(batch, length), length, config.candidates_at_most())
    return replace_sizes(filled, model.sizes(filled))


def replace_sizes(filled: JaggedBatch, sizes: dict[str, int]) -> JaggedBatch:
    made = replace(filled, sizes=sizes)
    vars(made)["max_length"] = filled.max_length
    return made


def loss_and_gradients(
    config: RunConfig, data: PreparedData, batch: JaggedBatch, *, pad: bool
) -> tuple[float, dict[str, Tensor], dict[str, int]]:
    torch.manual_seed(0)
    goal = make_goal(config, data)
    model = goal.build().double().train()
    for name, parameter in model.named_parameters():
        if name.startswith("head") or "mix" in name or "bias" in name:  # some start at zero, and would hide the rest
            torch.nn.init.normal_(parameter, std=0.1)
    if pad:
        batch = fixed(config, model, batch)
    loss = goal.objective(CPU).loss(model, batch)
    loss.backward()
    sizes = dict(batch.sizes or {})
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sizes


@pytest.mark.parametrize(("task", "name", "loss"), CASES)
def test_loss_and_gradients_are_those_of_the_batch_as_it_was(
    shop: PreparedData, task: str, name: str, loss: str
) -> None:
    config = config_of(task, name, loss)
    for batch in batches_of(config, shop, 2):
        value, gradients, _ = loss_and_gradients(config, shop, batch, pad=False)
        found, others, _ = loss_and_gradients(config, shop, batch, pad=True)
        assert found == pytest.approx(value, rel=1e-9)
        assert gradients.keys() <= others.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(others[key], gradient, rtol=1e-6, atol=1e-9, msg=key)
        assert not [key for key in others.keys() - gradients.keys() if others[key].any()]


class NothingAsked(TorchDispatchMode):
    """Fails where a value decides a shape or comes to the host, which on a GPU would wait and end a capture."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        aten = torch.ops.aten
        asks = func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default)
        asks |= func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        asks |= func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert not asks, func
        return func(*args, **kwargs)


@pytest.mark.parametrize(("task", "name"), sorted({case[:2] for case in CASES}))
def test_the_body_asks_the_host_nothing(
    monkeypatch: pytest.MonkeyPatch, shop: PreparedData, task: str, name: str
) -> None:
    config = config_of(task, name, "full", "model.embedding.time_gaps=newest")
    goal = make_goal(config, shop)
    model = goal.build().train()
    batch = fixed(config, model, batches_of(config, shop)[0])
    monkeypatch.setattr(hstu, "semi_local_attention", lambda q, k, v, *_, **__: v + q * k.mean())  # kernels on a GPU
    with NothingAsked():
        hidden = model.hidden(batch)
        found = model.outputs_of(hidden, batch) if isinstance(model, Ranker) else model.queries_of(hidden).vectors
        found.sum().backward()
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("name", "selections"),
    [
        ("truncation", {"newest"}),
        ("truncation of more than there is", set()),
        ("streams", {"liked", "rest", "every", "all streams"}),
        ("streams, one truncated", {"liked", "liked.newest", "every", "all streams"}),
        ("context", set()),
    ],
)
def test_every_selection_has_a_size_of_its_own(shop: PreparedData, name: str, selections: set[str]) -> None:
    config = config_of("retrieval", name, "full")
    _, _, sizes = loss_and_gradients(config, shop, batches_of(config, shop)[0], pad=True)
    assert sizes.keys() == selections
    assert all(size % 16 == 0 for size in sizes.values())


@pytest.mark.parametrize(("task", "name"), [("retrieval", "streams"), ("ranking", "candidates and truncation")])
def test_a_step_reads_what_was_written_for_it(shop: PreparedData, task: str, name: str) -> None:
    config = config_of(task, name, "full")
    model = make_goal(config, shop).build()
    batch = fixed(config, model, batches_of(config, shop)[0])
    shape = graph._Shape(batch, dict(batch.sizes or {}), CPU)
    shape.write(batch, 0.5, 0.25)
    found, rate, share = shape.read()
    assert (float(rate), float(share)) == (0.5, 0.25)
    assert (found.sizes, found.max_length) == (batch.sizes, batch.max_length)
    for field in fields(batch):
        given, back = getattr(batch, field.name), getattr(found, field.name)
        if isinstance(given, Tensor):
            assert torch.equal(given.nan_to_num(7), back.nan_to_num(7)), field.name
        else:
            assert back == given


def test_batches_of_a_run_have_few_shapes(shop: PreparedData) -> None:
    config = config_of("retrieval", "streams, all truncated", "full")
    model = make_goal(config, shop).build()
    shapes = set()
    for batch in batches_of(config, shop, 40):
        filled = fixed(config, model, batch)
        shapes.add((filled.num_tokens, filled.num_sequences, *(filled.sizes or {}).values()))
    assert len(shapes) <= graph.MOST


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def in_turn(
    monkeypatch: pytest.MonkeyPatch, data: PreparedData, config: RunConfig, batches: list[JaggedBatch]
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return losses and norms, and what a checkpoint would keep, of replays and of the same steps launch by launch."""
    found = []
    for warm_up in (3, 1000):
        monkeypatch.setattr(graph, "WARM_UP", warm_up)
        torch.manual_seed(0)
        one = Trainer(config, data, device=torch.device("cuda"), steps_per_epoch=4)
        assert one.captured is not None, one.graphs_note
        losses = torch.stack([torch.stack(one.step(batch, number)) for number, batch in enumerate(batches)]).cpu()
        assert (one.captured.captured > 0) == (warm_up == 3)
        found.append((losses, {name: value.cpu().clone() for name, value in one.tensors().items()}))
    return found


@GPU
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
class TestReplays:
    @pytest.mark.usefixtures("deterministic")
    @pytest.mark.parametrize(("task", "name", "loss"), [case for case in CASES if case[2] == "full"])
    @pytest.mark.parametrize("precision", ["float32", "bf16"])
    def test_they_have_the_bits_of_the_steps_they_stand_for(
        self, monkeypatch: pytest.MonkeyPatch, shop: PreparedData, task: str, name: str, loss: str, precision: str
    ) -> None:
        config = config_of(task, name, loss, f"loop.precision={precision}", "model.dropout=0.5")
        (replayed, kept), (launched, others) = in_turn(monkeypatch, shop, config, batches_of(config, shop, 20))
        assert torch.equal(replayed, launched)
        assert not torch.equal(replayed[0], replayed[-1])
        assert [key for key in kept if not torch.equal(kept[key], others[key])] == []

    @pytest.mark.usefixtures("deterministic")
    def test_with_8_bit_products_too(self, monkeypatch: pytest.MonkeyPatch, shop: PreparedData) -> None:
        eight = ("model.width=32", "model.layer.precision=fp8", "loop.precision=bf16")
        config = config_of("retrieval", "truncation", "full", *eight)
        (replayed, kept), (launched, others) = in_turn(monkeypatch, shop, config, batches_of(config, shop, 20))
        assert torch.equal(replayed, launched)
        assert [key for key in kept if not torch.equal(kept[key], others[key])] == []

    @pytest.mark.parametrize(("task", "name", "loss"), [case for case in CASES if case[2] == "full"])
    def test_the_first_loss_is_that_without_padding(self, shop: PreparedData, task: str, name: str, loss: str) -> None:
        losses = {}
        for graphs in ("on", "off"):
            config = config_of(task, name, loss, f"loop.graphs={graphs}")
            torch.manual_seed(0)
            one = Trainer(config, shop, device=torch.device("cuda"), steps_per_epoch=4)
            losses[graphs] = torch.stack(one.step(batches_of(config, shop)[0], 0)).cpu()
        torch.testing.assert_close(losses["on"], losses["off"], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("task", "name"), [("retrieval", "context, streams and truncation"), ("ranking", "candidates")]
    )
    def test_nothing_waits_for_the_device(self, shop: PreparedData, task: str, name: str) -> None:
        config = config_of(task, name, "full")
        one = Trainer(config, shop, device=torch.device("cuda"), steps_per_epoch=4)
        batches = batches_of(config, shop, 24)
        for number, batch in enumerate(batches):
            one.step(batch, number)
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = [one.step(batch, number)[0] for number, batch in enumerate(batches[:4], len(batches))]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.stack(found).isfinite().all()
