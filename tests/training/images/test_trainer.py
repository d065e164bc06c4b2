"""Images that stay on a device, turned classes, a slow encoder, and the steps that a GPU captures."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain, count, islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from longview.data.images import ImageSet
from longview.metric_learning import CrossBatchLoss
from longview.ops.graphs import CaptureAbandonedError
from longview.training.checkpoint import latest_checkpoint, load_checkpoint
from longview.training.images import ImageRunConfig, graph, train_images
from longview.training.images.encoder_files import load_encoder
from longview.training.images.graph import AHEAD, choose_image_graphs
from longview.training.images.trainer import ImageTrainer
from longview.training.images.views import ChosenImages, TrainingBatches, Views, framing_of
from longview.training.tensors import under

pytestmark = pytest.mark.filterwarnings("ignore::longview.metric_learning.MemoryWarning")  # tiny batches

Configure = Callable[..., ImageRunConfig]
CPU = torch.device("cpu")


def make(images: ImageSet, config: ImageRunConfig, device: torch.device = CPU) -> tuple[ImageTrainer, TrainingBatches]:
    views = Views.of(images, config.data)
    torch.manual_seed(0)
    encoder = config.encoder.build()
    batches = TrainingBatches(views.train, config, framing_of(config, encoder, images), device)
    return ImageTrainer(config, encoder, batches, device=device), batches


def saved(out: Path) -> dict[str, torch.Tensor]:
    path = latest_checkpoint(out / "checkpoint")
    assert path is not None
    return load_checkpoint(path)[0]


@pytest.mark.parametrize("more", [[], ["data.turned_classes=true", "data.augment.rotation=20"]], ids=["", "turned"])
def test_images_that_stay_train_as_others_do_bit_for_bit(
    image_set: ImageSet, configure: Configure, tmp_path: Path, more: list[str]
) -> None:
    for name in ("on", "off"):
        train_images(configure(f"data.resident={name}", *more), image_set, tmp_path / name)
    one, other = saved(tmp_path / "on"), saved(tmp_path / "off")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_turned_classes_make_an_epoch_four_times_as_long(image_set: ImageSet, configure: Configure) -> None:
    _, batches = make(image_set, configure("data.resident=on"))
    _, turned = make(image_set, configure("data.resident=on", "data.turned_classes=true"))
    assert turned.steps(0) == 4 * batches.steps(0)
    _, mirrored = make(image_set, configure("data.resident=on", "data.turned_classes=mirrored"))
    assert mirrored.steps(0) == 8 * batches.steps(0)
    assert len(mirrored.classes) == 2 * len(turned.classes) == 8 * len(batches.classes)
    seen = torch.cat([batch.samples for batch in turned.epoch(0) if isinstance(batch, ChosenImages)])
    assert turned.resident is not None
    assert set(seen.tolist()) == set(range(4 * turned.resident.number))


def test_a_slow_encoder_fills_the_memory_and_resumes(image_set: ImageSet, configure: Configure, tmp_path: Path) -> None:
    settings = ("memory.drift.kind=none", "memory.momentum=0.9")
    trainer, batches = make(image_set, configure(*settings))
    batch = next(iter(batches.epoch(0)))
    trainer.step(batch, 0)
    assert trainer.slow is not None
    fast, slow = (dict(model.named_parameters()) for model in (trainer.encoder, trainer.slow.encoder))
    assert any(not torch.equal(fast[name], value) for name, value in slow.items())
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_images(configure(*settings, "loop.epochs=3"), image_set, whole)
    train_images(configure(*settings, "loop.epochs=3", "loop.max_minutes=1e-9"), image_set, parts)
    train_images(configure(*settings, "loop.epochs=3"), image_set, parts, resume=True)
    one, other = saved(whole), saved(parts)
    assert any(name.startswith("slow.") for name in one)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_average_of_weights_is_what_is_evaluated_and_saved_and_it_resumes(
    image_set: ImageSet, configure: Configure, tmp_path: Path
) -> None:
    settings = ("optimiser.average_decay=0.9", "loop.epochs=3", "loop.metric=latest")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_images(configure(*settings), image_set, whole)
    train_images(configure(*settings, "loop.max_minutes=1e-9"), image_set, parts)
    train_images(configure(*settings), image_set, parts, resume=True)
    one, other = saved(whole), saved(parts)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    kept = load_encoder(whole / "encoder").state_dict()
    average = under(one, "average")
    assert all(torch.equal(value, average[name]) for name, value in kept.items())
    assert any(not torch.equal(value, one[f"encoder.{name}"]) for name, value in kept.items())


def test_the_average_has_statistics_of_its_own(image_set: ImageSet, configure: Configure) -> None:
    trainer, batches = make(image_set, configure("optimiser.average_decay=0.5", "data.resident=on"))
    before = {name: value.clone() for name, value in trainer.encoder.named_buffers() if value.is_floating_point()}
    trainer.step(next(iter(batches.epoch(0))), 0)
    fast, average = dict(trainer.encoder.named_buffers()), dict(trainer.evaluated.named_buffers())
    assert any(not torch.equal(value, fast[name]) for name, value in before.items())
    for name, value in before.items():  # the decay of the first step is 0.1
        torch.testing.assert_close(average[name], 0.1 * value + 0.9 * fast[name])


@pytest.mark.parametrize("memory", [[], ["memory.drift.kind=none"], ["memory.momentum=0.9"], ["memory=null"]], ids=str)
def test_the_step_that_is_captured_trains_as_the_ordinary_one(
    image_set: ImageSet, configure: Configure, memory: list[str]
) -> None:
    """The body of the graph, run operation by operation as before a capture: the same weights but for rounding."""
    more = ("data.augment.rotation=20", "data.augment.warp=0.05", "optimiser.average_decay=0.9")
    config = configure("data.resident=on", *more, *memory)
    ordinary, batches = make(image_set, config)
    fixed, _ = make(image_set, config)
    for number, batch in enumerate(batches.epoch(0)):
        assert isinstance(batch, ChosenImages)
        loss, norm = ordinary.step(batch, number)
        if number == 0:
            fixed.step(batch, number)
            if isinstance(fixed.loss, CrossBatchLoss):
                fixed.loss.fix(len(batch.samples))
            continue
        assert fixed.average is not None
        other, other_norm = fixed._chosen_step(
            batch.samples, batch.draws, torch.tensor(ordinary.rate), torch.tensor(fixed.average.share(number))
        )
        if isinstance(fixed.loss, CrossBatchLoss):
            assert fixed.loss.fixed is not None
            fixed.loss.fixed.advance()
        torch.testing.assert_close(other, loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other_norm, norm, rtol=1e-3, atol=1e-5)
    before, after = ordinary.tensors(), fixed.tensors()
    shared = [name for name in before if "pending" not in name and name != "random.cpu"]
    counters = [name for name in shared if not before[name].is_floating_point() and "queue" not in name]
    assert all(torch.equal(before[name], after[name]) for name in counters)
    assert fixed.average is not None
    assert ordinary.average is not None
    for average, other in zip(ordinary.average.model.parameters(), fixed.average.model.parameters(), strict=True):
        torch.testing.assert_close(average, other, rtol=1e-2, atol=1e-2)


def test_a_capture_that_stops_halfway_leaves_the_run_as_it_was(
    monkeypatch: pytest.MonkeyPatch, image_set: ImageSet, configure: Configure
) -> None:
    """On a CPU, with steps that take the way of a GPU up to the recording, whose body leaves gradients behind."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: SimpleNamespace(synchronize=int, record=int))
    monkeypatch.setattr(graph, "launched", lambda body, stream: body())
    config = configure("data.resident=on", "optimiser.average_decay=0.9", "loop.graphs=off")
    found, tried = [], []
    for warm_up in (1000, 1):
        trainer, batches = make(image_set, config)
        trainer.graphs = True

        def stops(*_: object, refusal: str, one: ImageTrainer = trainer, **__: object) -> tuple[object, object]:
            tried.append(refusal)
            for parameter in one.encoder.parameters():
                parameter.grad = torch.full_like(parameter, torch.nan)
            raise CaptureAbandonedError(refusal, "CUDA out of memory")

        monkeypatch.setattr(graph, "WARM_UP", warm_up)
        monkeypatch.setattr("longview.training.graph.recorded", stops)
        steps = list(islice(chain.from_iterable(batches.epoch(number) for number in range(9)), 9))
        expected = nullcontext() if warm_up > 1 else pytest.warns(RuntimeWarning, match=r"of \d+ images could not be")
        with expected:
            losses = torch.stack([torch.stack(trainer.step(batch, n)) for n, batch in enumerate(steps)])
        found.append((losses, trainer.tensors()))
    (before, kept), (after, others) = found
    assert len(tried) == 1, "one is tried, and no further ones"
    assert torch.equal(before, after)
    assert [name for name in kept if not torch.equal(kept[name], others[name])] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_replayed_steps_train_as_launched_ones(image_set: ImageSet, configure: Configure) -> None:
    """For more steps than have room in pinned memory, so that its places are used again while the host runs ahead."""
    losses: dict[str, list[torch.Tensor]] = {"on": [], "off": []}
    averages: dict[str, list[torch.Tensor]] = {}
    for graphs, found in losses.items():
        more = (
            "data.augment.rotation=20",
            "data.augment.shear=10",
            "data.augment.warp=0.05",
            "data.augment.stroke=0.5",
        )
        config = configure(f"loop.graphs={graphs}", *more, "optimiser.rate=1e-4", "optimiser.average_decay=0.9")
        trainer, batches = make(image_set, config, torch.device("cuda"))
        trainer.planned_steps = 2 * AHEAD
        epochs = (batch for epoch in count() for batch in batches.epoch(epoch))
        for number, batch in enumerate(islice(epochs, 2 * AHEAD)):
            found.append(trainer.step(batch, number)[0])
        assert (trainer.captured is not None) == (graphs == "on")
        averages[graphs] = [p.cpu() for p in trainer.evaluated.parameters()]
    torch.testing.assert_close(averages["on"], averages["off"], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(torch.stack(losses["on"]), torch.stack(losses["off"]), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["normalised-softmax", "arcface", "proxy-anchor"])
def test_losses_against_vectors_of_classes_train_and_resume(
    image_set: ImageSet, configure: Configure, tmp_path: Path, kind: str
) -> None:
    settings = (f"loss.kind={kind}", "memory=null", "data.turned_classes=true", "loop.epochs=3")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = train_images(configure(*settings), image_set, whole)
    losses = [record["loss"] for record in result.state.epochs]
    assert losses[-1] < losses[0]
    train_images(configure(*settings, "loop.max_minutes=1e-9"), image_set, parts)
    train_images(configure(*settings), image_set, parts, resume=True)
    one, other = saved(whole), saved(parts)
    assert one["loss.loss.weight"].shape == (4 * 6, 8)  # 6 of 8 classes train, in four directions each
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_graphs_say_why_they_are_off(configure: Configure) -> None:
    loss = torch.nn.Identity()
    loop = configure().loop
    assert choose_image_graphs(loop, loss, CPU, resident=True) == (False, None)
    wanted = configure("loop.graphs=on").loop
    assert "need a GPU" in str(choose_image_graphs(wanted, loss, CPU, resident=True)[1])
    assert "read from files" in str(choose_image_graphs(loop, loss, torch.device("cuda"), resident=False)[1])
    assert choose_image_graphs(loop, loss, torch.device("cuda"), resident=True) == (True, None)
