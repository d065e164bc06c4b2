"""Steps as CUDA graphs: padding adds nothing, a replay is the step it stands for, and a reason where they are off.

What needs a GPU is skipped without one.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import cycle, islice
from typing import NoReturn

import pytest
import torch
from torch import Tensor

from longview.data.batches import JaggedBatch, TrainingBatches
from longview.data.dataset import PreparedData
from longview.data.padding import capacity_for, padded
from longview.errors import LongviewError
from longview.ops.graphs import CaptureAbandonedError
from longview.training import graph
from longview.training import trainer as training
from longview.training.config import RunConfig
from longview.training.graph import choose_graphs
from longview.training.objective import Objective
from longview.training.trainer import Trainer

Configure = Callable[..., RunConfig]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NO_DROPOUT = ("model.dropout=0", "model.embedding.dropout=0")
SAMPLED = ("loss.kind=sampled", "loss.num_negatives=5")

MODELS = {
    "full attention": (),
    "relative bias": ("model.attention.position_bias=true", "model.attention.time_bias=true"),
    "prefix and window": ("model.attention.local_window=3", "model.attention.global_size=2"),
    "recent and window": (
        "model.attention.local_window=3",
        "model.attention.global_size=2",
        "model.attention.global_mode=recent",
    ),
    "time since the previous event": ("model.embedding.time_gaps=previous",),
    "time until the newest event": ("model.embedding.time_gaps=newest",),
    "softmax attention": ("model.kind=sasrec",),
    "unit vectors": ("model.normalise=true", "loss.temperature=0.1"),
}
LOSSES = {
    "full": (),
    "smoothed": ("loss.label_smoothing=0.1",),
    "sampled": (*SAMPLED, "loss.negative_groups=1"),
    "popular": (*SAMPLED, "loss.negative_groups=1", "loss.sampling=popularity"),
}


def batches_of(data: PreparedData, count: int = 1) -> list[JaggedBatch]:
    """Return `count` batches, few of them distinct."""
    all_of_an_epoch = TrainingBatches(data, max_length=8, seed=0, batch_size=16).epoch(0)
    return list(islice(cycle(all_of_an_epoch), count))


def loss_and_gradients(config: RunConfig, data: PreparedData, batch: JaggedBatch) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = config.model.build(data.num_items).double().train()
    loss = Objective(config.loss, data, device=CPU, seed=1).loss(model, batch)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


class TestPadding:
    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("loss", LOSSES)
    def test_loss_and_gradients_are_those_of_the_batch_without_it(
        self, tiny: PreparedData, tiny_config: Configure, model: str, loss: str
    ) -> None:
        config = tiny_config(*NO_DROPOUT, *MODELS[model], *LOSSES[loss])
        batch = batches_of(tiny)[0]
        value, gradients = loss_and_gradients(config, tiny, batch)
        filled = padded(batch, capacity_for(batch, 8), 8)
        assert filled.num_tokens > batch.num_tokens
        found, others = loss_and_gradients(config, tiny, filled)
        assert found == pytest.approx(value, rel=1e-9)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-6, atol=1e-9, msg=name)

    def test_negatives_from_the_batch_are_never_padding(self, tiny: PreparedData, tiny_config: Configure) -> None:
        config = tiny_config(*SAMPLED, "loss.sampling=in-batch", "loss.num_negatives=2000")
        batch = batches_of(tiny)[0]
        filled = padded(batch, capacity_for(batch, 8), 8)
        assert batch.targets is not None
        assert filled.targets is not None
        filled.targets[batch.num_tokens :] = tiny.num_items  # no target of a real event
        sampler = Objective(config.loss, tiny, device=CPU, seed=1).sampler
        assert sampler is not None
        sampler._log_q = None  # which has no such item
        drawn = sampler.draw(filled.targets, filled.counted).items
        assert set(drawn.flatten().tolist()) == set(batch.targets.tolist())


class TestChoice:
    def test_a_cpu_is_not_expected_to_have_them(self, tiny: PreparedData, tiny_config: Configure) -> None:
        one = Trainer(tiny_config(), tiny, device=CPU, steps_per_epoch=4)
        assert (one.captured, one.graphs_note) == (None, None)

    def test_asked_for_on_a_cpu_it_says_why_not(self, tiny: PreparedData, tiny_config: Configure) -> None:
        one = Trainer(tiny_config("loop.graphs=on"), tiny, device=CPU, steps_per_epoch=4)
        assert one.captured is None
        expected = "CUDA graphs are off, launching step by step: they need a GPU, and the run is on cpu"
        assert one.graphs_note == expected

    @pytest.mark.parametrize(
        ("setting", "reason"),
        [
            (("task=both",), "task both picks the events whose next item it trains, so shapes depend on what is in a"),
            (("model.width=1024", "model.heads=2"), "heads of up to 256, and these have 512"),
            (("model.max_length=5000", "model.attention.position_bias=true"), "up to 4096 distances, not 5000"),
            (
                ("model.truncation={length: 4500, layers: 1, attention: {position_bias: true}}",),
                "up to 4096 distances, not 4500",
            ),
        ],
    )
    def test_what_cannot_be_captured_has_a_reason(
        self, monkeypatch: pytest.MonkeyPatch, tiny_config: Configure, setting: tuple[str, ...], reason: str
    ) -> None:
        monkeypatch.setattr(graph, "why_off", lambda *_: None)  # as on a GPU
        wanted, note = choose_graphs(tiny_config(*setting), CUDA)
        assert not wanted
        assert note is not None
        assert reason in note

    @pytest.mark.parametrize(
        "setting",
        [
            "task=ranking",
            "model.truncation={length: 4, layers: 1}",
            "model.streams={all: {actions: [all]}}",
            "model.embedding.context=[age]",
        ],
    )
    def test_what_selects_rows_is_captured_too(
        self, monkeypatch: pytest.MonkeyPatch, tiny_config: Configure, setting: str
    ) -> None:
        monkeypatch.setattr(graph, "why_off", lambda *_: None)
        assert choose_graphs(tiny_config(setting), CUDA) == (True, None)

    def test_a_gpu_has_them_unless_told(self, monkeypatch: pytest.MonkeyPatch, tiny_config: Configure) -> None:
        monkeypatch.setattr(graph, "why_off", lambda *_: None)
        assert choose_graphs(tiny_config(), CUDA) == (True, None)
        assert choose_graphs(tiny_config("loop.graphs=off"), CUDA) == (False, None)
        assert choose_graphs(tiny_config("loss.kind=sampled", "optimiser.tables=rowwise"), CUDA) == (True, None)


def abandons(body: Callable[[], object], *_: object, refusal: str, **__: object) -> NoReturn:
    """Stand in for `recorded` where memory runs out: the body has run on the host, and no kernel has."""
    raise CaptureAbandonedError(refusal.format(reason="CUDA out of memory"), "CUDA out of memory")


class TestAbandonedCaptures:
    """On a CPU, with steps that take the way of a GPU up to the recording."""

    @pytest.fixture
    def captures(self, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(graph, "launched", lambda body, stream: body())
        monkeypatch.setattr(training, "choose_graphs", lambda *_: (True, None))
        return monkeypatch

    def made(self, data: PreparedData, config: RunConfig) -> Trainer:
        torch.manual_seed(0)
        one = Trainer(config, data, device=CPU, steps_per_epoch=4)
        for group in one.optimiser.param_groups:
            group["capturable"] = False  # which torch has no such form of for a CPU
        return one

    @pytest.mark.parametrize("tables", ["dense", "rowwise"])
    def test_the_run_goes_on_as_if_none_had_been_tried(
        self, captures: pytest.MonkeyPatch, tiny: PreparedData, tiny_config: Configure, tables: str
    ) -> None:
        config = tiny_config(*SAMPLED, f"optimiser.tables={tables}", "model.dropout=0.5", "optimiser.average_decay=0.9")
        batches = batches_of(tiny, 16)
        ran = {}
        for warm_up in (1000, 1):
            captures.setattr(graph, "WARM_UP", warm_up)
            one = self.made(tiny, config)
            tried: list[int] = []

            def halfway(*args: object, one: Trainer = one, tried: list[int] = tried, **more: object) -> NoReturn:
                tried.append(1)
                for parameter in one.model.parameters():  # what a body leaves that no kernel has filled
                    sparse = parameter.grad is not None and parameter.grad.is_sparse
                    parameter.grad = None if sparse else torch.full_like(parameter, torch.nan)
                abandons(*args, **more)  # type: ignore[arg-type]

            captures.setattr(graph, "recorded", halfway)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                losses = train(one, batches)
            words = [str(warning.message) for warning in told if "captured" in str(warning.message)]
            ran[warm_up] = (losses, {name: value.clone() for name, value in one.tensors().items()}, words, tried)
        (expected, kept, _, never), (found, others, words, tried) = ran[1000], ran[1]
        assert (never, tried) == ([], [1]), "one is tried, and no further ones"
        assert torch.equal(found, expected)
        assert [name for name in kept if not torch.equal(kept[name], others[name])] == []
        assert len(words) == 1
        assert re.search(r"\d+ sequences and \d+ events could not .*\(CUDA out of memory\); the run goes", words[0])

    def test_one_that_is_invalid_ends_the_run_with_the_remedy(
        self, captures: pytest.MonkeyPatch, tiny: PreparedData, tiny_config: Configure
    ) -> None:
        def invalid(*_: object, refusal: str, **__: object) -> NoReturn:
            raise LongviewError(refusal.format(reason="the capture was invalidated"))

        captures.setattr(graph, "recorded", invalid)
        one = self.made(tiny, tiny_config())
        with pytest.raises(LongviewError, match=r"\d+ sequences and \d+ events.*invalidated.*--set loop.graphs"):
            train(one, batches_of(tiny, 16))


def trainer(data: PreparedData, config: RunConfig) -> Trainer:
    torch.manual_seed(0)
    return Trainer(config, data, device=CUDA, steps_per_epoch=4)


def train(one: Trainer, batches: list[JaggedBatch], first: int = 0) -> Tensor:
    """Return the losses and norms of steps from `first` on, (steps, 2), read at the end as the loop does."""
    results = [torch.stack(one.step(batch, number)) for number, batch in enumerate(batches, first)]
    return torch.stack(results).cpu()


def graphs_of(one: Trainer) -> int:
    assert one.captured is not None
    return one.captured.captured


def in_turn(
    monkeypatch: pytest.MonkeyPatch, data: PreparedData, config: RunConfig, batches: list[JaggedBatch]
) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return losses and norms, and what a checkpoint would keep, of replays and of the same steps launch by launch."""
    found = []
    for warm_up in (3, 1000):
        monkeypatch.setattr(graph, "WARM_UP", warm_up)
        one = trainer(data, config)
        losses = train(one, batches)
        assert (graphs_of(one) > 0) == (warm_up == 3)
        found.append((losses, {name: value.cpu().clone() for name, value in one.tensors().items()}))
    (replayed, kept), (launched, others) = found
    return replayed, launched, kept, others


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Sums in one order: two runs then differ by a bit only where they do different things."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@GPU
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
class TestReplays:
    @pytest.mark.usefixtures("deterministic")
    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("precision", ["float32", "bf16"])
    def test_they_have_the_bits_of_the_steps_they_stand_for(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tiny: PreparedData,
        tiny_config: Configure,
        model: str,
        precision: str,
    ) -> None:
        average = "optimiser.average_decay=0.9"
        config = tiny_config(*MODELS[model], f"loop.precision={precision}", average, "model.dropout=0.5")
        replayed, launched, kept, others = in_turn(monkeypatch, tiny, config, batches_of(tiny, 20))
        assert torch.equal(replayed, launched)
        assert not torch.equal(replayed[0], replayed[-1])
        assert kept.keys() == others.keys()
        assert [name for name in kept if not torch.equal(kept[name], others[name])] == []

    @pytest.mark.usefixtures("deterministic")
    @pytest.mark.parametrize("loss", ["full", "sampled", "popular", "in-batch", "row-wise table"])
    @pytest.mark.parametrize("bias", ["false", "true"])  # with a bias the layer runs operation by operation
    def test_with_dropout_and_negatives_they_draw_what_launches_draw(
        self, monkeypatch: pytest.MonkeyPatch, tiny: PreparedData, tiny_config: Configure, loss: str, bias: str
    ) -> None:
        more = {"in-batch": "loss.sampling=in-batch", "row-wise table": "optimiser.tables=rowwise"}
        settings = LOSSES[loss] if loss in LOSSES else (*SAMPLED, more[loss])
        config = tiny_config(*settings, f"model.attention.position_bias={bias}", "model.dropout=0.5")
        replayed, launched, kept, others = in_turn(monkeypatch, tiny, config, batches_of(tiny, 20))
        assert torch.equal(replayed, launched)
        assert [name for name in kept if not torch.equal(kept[name], others[name])] == []

    @pytest.mark.usefixtures("deterministic")
    @pytest.mark.parametrize("tables", ["dense", "rowwise"])
    def test_after_a_capture_that_stopped_halfway_steps_are_launched(
        self, monkeypatch: pytest.MonkeyPatch, tiny: PreparedData, tiny_config: Configure, tables: str
    ) -> None:
        config = tiny_config(*SAMPLED, f"optimiser.tables={tables}", "model.dropout=0.5")
        batches, found, body = batches_of(tiny, 20), [], Trainer._backward

        def stops(one: Trainer, batch: JaggedBatch) -> tuple[Tensor, int]:
            result = body(one, batch)
            if torch.cuda.is_current_stream_capturing():
                raise torch.OutOfMemoryError("no room")
            return result

        monkeypatch.setattr(Trainer, "_backward", stops)
        for warm_up in (1000, 3):
            monkeypatch.setattr(graph, "WARM_UP", warm_up)
            one = trainer(tiny, config)
            with nullcontext() if warm_up > 3 else pytest.warns(RuntimeWarning, match="no room"):
                losses = train(one, batches)
            assert graphs_of(one) == 0
            found.append((losses, {name: value.cpu().clone() for name, value in one.tensors().items()}))
        assert torch.equal(found[0][0], found[1][0])
        assert [name for name, value in found[0][1].items() if not torch.equal(value, found[1][1][name])] == []

    @pytest.mark.parametrize("model", MODELS)
    def test_the_first_loss_is_that_without_padding(
        self, tiny: PreparedData, tiny_config: Configure, model: str
    ) -> None:
        losses = {}
        for graphs in ("on", "off"):
            one = trainer(tiny, tiny_config(*NO_DROPOUT, *MODELS[model], f"loop.graphs={graphs}"))
            losses[graphs] = train(one, batches_of(tiny)[:1])
        torch.testing.assert_close(losses["on"], losses["off"], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("bias", ["false", "true"])
    def test_every_replay_drops_other_elements(self, tiny: PreparedData, tiny_config: Configure, bias: str) -> None:
        still = ("optimiser.rate=1e-12", "model.embedding.dropout=0", "model.dropout=0.5", "optimiser.warmup_steps=0")
        one = trainer(tiny, tiny_config(*still, f"model.attention.position_bias={bias}"))
        losses = train(one, batches_of(tiny)[:1] * 12)[:, 0]
        assert graphs_of(one) == 1
        assert len(set(losses.tolist())) == 12

    def test_every_replay_draws_other_negatives(self, tiny: PreparedData, tiny_config: Configure) -> None:
        one = trainer(tiny, tiny_config(*SAMPLED, *NO_DROPOUT, "optimiser.rate=1e-12", "optimiser.warmup_steps=0"))
        losses = train(one, batches_of(tiny)[:1] * 12)[:, 0]
        assert len(set(losses.tolist())) == 12

    @pytest.mark.usefixtures("deterministic")
    def test_work_lists_follow_the_lengths(
        self, monkeypatch: pytest.MonkeyPatch, tiny: PreparedData, tiny_config: Configure
    ) -> None:
        """Two batches of one shape and other lengths, in turn: stale lists would mix their sequences up."""
        first = batches_of(tiny)[0]
        lengths = first.offsets.diff().flip(0)
        second = JaggedBatch(
            first.items,
            torch.cat([first.offsets[:1], lengths.cumsum(0)]),
            timestamps=first.timestamps,
            targets=first.targets,
        )
        window = ("model.attention.local_window=3", "model.attention.global_size=2")
        config = tiny_config(*NO_DROPOUT, *window)
        replayed, launched, _, _ = in_turn(monkeypatch, tiny, config, [first, second] * 8)
        assert torch.equal(replayed, launched)

    @pytest.mark.usefixtures("deterministic")
    @pytest.mark.parametrize("at", [2, 11])  # while shapes are launched, and after their capture
    @pytest.mark.parametrize("tables", ["dense", "rowwise"])
    def test_a_resumed_run_goes_on_as_it_would_have(
        self, tiny: PreparedData, tiny_config: Configure, at: int, tables: str
    ) -> None:
        average = "optimiser.average_decay=0.9"
        config = tiny_config(*SAMPLED, "model.dropout=0.5", average, f"optimiser.tables={tables}")
        batches = batches_of(tiny, 20)
        whole = trainer(tiny, config)
        before = train(whole, batches[:at])
        saved = {name: value.cpu().clone() for name, value in whole.tensors().items()}
        after = train(whole, batches[at:], at)
        resumed = trainer(tiny, config)
        train(resumed, batches[:7])  # graphs of its own, which the checkpoint must not leave in use
        resumed.load_tensors(saved)
        assert torch.equal(train(resumed, batches[at:], at), after)
        assert not torch.equal(before[0], after[-1])
        kept = resumed.tensors()
        assert [name for name, value in whole.tensors().items() if not torch.equal(kept[name], value)] == []

    def test_nothing_waits_for_the_device(self, tiny: PreparedData, tiny_config: Configure) -> None:
        one = trainer(tiny, tiny_config(*SAMPLED))
        batches = batches_of(tiny, 20)
        train(one, batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = [one.step(batch, number)[0] for number, batch in enumerate(batches[:4], 20)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.stack(found).isfinite().all()
