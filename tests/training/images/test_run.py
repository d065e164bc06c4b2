"""A run on images: it learns, resumes bit for bit with its memory, and refuses what cannot work."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longview.data.images import ImageSet, prepare_images
from longview.errors import InputError
from longview.training import InterruptedRunError
from longview.training.checkpoint import latest_checkpoint
from longview.training.images import ImageRunConfig, load_encoder, load_image_run, train_images
from longview.training.images.report import reports_of, validation_metrics
from longview.training.images.trainer import ImageTrainer
from longview.training.loop import DivergenceError
from longview.training.progress import Status, TrainingProgress
from tests.image_classes import write_classes

pytestmark = pytest.mark.filterwarnings("ignore::longview.metric_learning.MemoryWarning")  # tiny batches

Configure = Callable[..., ImageRunConfig]


class SignalAt(TrainingProgress):
    """Sends this process SIGINT when step `number` of the run has been shown."""

    def __init__(self, number: int) -> None:
        self.left = number

    def step(self, status: Status) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def checkpoint_tensors(out: Path) -> dict[str, torch.Tensor]:
    path = latest_checkpoint(out / "checkpoint")
    assert path is not None
    return load_file(path.with_suffix(".safetensors"))


def test_it_learns_to_tell_classes_apart(image_set: ImageSet, configure: Configure, tmp_path: Path) -> None:
    config = configure("loop.epochs=10", "data.validation_classes=0", "loop.metric=latest")
    result = train_images(config, image_set, tmp_path / "run", baselines=True)
    run = load_image_run(tmp_path / "run")
    torch.manual_seed(0)
    before, after = (
        validation_metrics(encoder, image_set.train, run.framing, config, torch.device("cpu"))
        for encoder in (config.encoder.build(), run.encoder)
    )
    assert after["map@r"] > before["map@r"] + 0.1
    assert [report["name"] for report in result.baselines] == ["pixels"]


def test_the_run_directory_says_what_came_out(image_set: ImageSet, configure: Configure, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train_images(configure("evaluation.drift_every=4", "evaluation.gallery_queries=2"), image_set, out)
    written = json.loads((out / "result.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert {"recall@1", "recall@5", "recall@10", "map@r"} <= written["test"]["metrics"].keys()
    low, high = written["test"]["intervals"]["map@r"]
    assert low <= written["test"]["metrics"]["map@r"] <= high
    card = (out / "card.md").read_text()
    assert "Leave-one-out: each of 24 images queries all others" in card
    assert "2 of 8 training classes were held out" in card
    assert image_set.fingerprint in card
    assert all(f"({name})" in card for name in ("curves.png", "gallery.png", "drift.png"))
    drift = json.loads((out / "drift.json").read_text())
    assert [record["step"] for record in drift["records"]] == [4, 8, 12]
    assert drift["records"][-1]["memory"]["rows"] == 20


def test_the_encoder_can_be_used_without_the_run(image_run: Path) -> None:
    loaded = load_image_run(image_run)
    (again,) = reports_of(
        loaded.encoder, loaded.open_images(), loaded.framing, loaded.config, "test", device=torch.device("cpu")
    )
    assert again == json.loads((image_run / "result.json").read_text())["test"]
    encoder = load_encoder(image_run / "encoder")
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), loaded.encoder.parameters(), strict=True))


class TestResume:
    VARIANTS = (
        ("memory.drift.kind=axbn", "evaluation.drift_every=4"),
        ("memory.drift.kind=xbn", "memory.storage=bfloat16", "data.augment.shift=0.1", "data.augment.erase=0.5"),
        ("memory=null", "loss.kind=multi-similarity"),
    )

    @pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant[0])
    def test_a_signal_in_mid_epoch_resumes_bit_for_bit(
        self, image_set: ImageSet, configure: Configure, tmp_path: Path, variant: tuple[str, ...]
    ) -> None:
        config = configure(*variant)
        straight = train_images(config, image_set, tmp_path / "straight")
        steps = straight.state.total_steps // 2
        with pytest.raises(InterruptedRunError, match=r"epoch 2, step 2; the checkpoint is in .*resume"):
            train_images(config, image_set, tmp_path / "broken", progress=SignalAt(steps + 2))
        resumed = train_images(config, image_set, tmp_path / "broken", resume=True)
        one, other = (checkpoint_tensors(tmp_path / name) for name in ("straight", "broken"))
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
        assert any(name.startswith("loss.memory.") for name in one) == (config.memory is not None)
        assert resumed.test == straight.test
        assert resumed.drift == straight.drift
        assert [e["loss"] for e in resumed.state.epochs] == [e["loss"] for e in straight.state.epochs]

    def test_another_configuration_is_refused_but_more_epochs_are_not(
        self, image_set: ImageSet, configure: Configure, image_run: Path, tmp_path: Path
    ) -> None:
        out = shutil.copytree(image_run, tmp_path / "run")
        with pytest.raises(InputError, match=r"but memory\.capacity differ"):
            train_images(configure("memory.capacity=30"), image_set, out, resume=True)
        longer = train_images(configure("loop.epochs=3"), image_set, out, resume=True)
        assert len(longer.state.epochs) == 3

    def test_other_images_are_refused(self, configure: Configure, image_run: Path, tmp_path: Path) -> None:
        others = prepare_images(write_classes(tmp_path / "source", classes=14), out=tmp_path / "data", workers=0)
        with pytest.raises(InputError, match="results would not be comparable"):
            train_images(configure(), others, image_run, resume=True)

    def test_there_must_be_a_run(self, image_set: ImageSet, configure: Configure, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no run to resume"):
            train_images(configure(), image_set, tmp_path / "run", resume=True)


@pytest.mark.parametrize("memory", ["memory.capacity=20", "memory=null"])
def test_embeddings_that_are_no_numbers_end_the_run_and_keep_the_checkpoint(
    image_set: ImageSet, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    step = ImageTrainer.step

    def poisoned(self: ImageTrainer, batch: object, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        if number == 6:
            with torch.no_grad():
                next(self.encoder.head.parameters()).fill_(torch.nan)
        return step(self, batch, number)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageTrainer, "step", poisoned)
    config = configure(memory, "loop.checkpoint_every_steps=5")
    with pytest.raises(
        DivergenceError, match=r"the loss became nan at step 7 \(epoch \d, batch \d of \d\).*Lower optimiser\.rate"
    ):
        train_images(config, image_set, tmp_path / "run")
    tensors = checkpoint_tensors(tmp_path / "run")
    assert all(bool(value.isfinite().all()) for value in tensors.values() if value.is_floating_point())


@pytest.mark.parametrize("which", ["weight", "statistics"])
def test_an_encoder_that_the_last_step_broke_is_not_saved(
    image_set: ImageSet, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    step = ImageTrainer.step

    def overflowing(self: ImageTrainer, batch: object, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = step(self, batch, number)  # type: ignore[arg-type]
        if number == 5:
            statistics = [b for b in self.encoder.buffers() if b.is_floating_point()]
            broken = next(self.encoder.head.parameters()) if which == "weight" else statistics[0]
            with torch.no_grad():
                broken.view(-1)[0] = torch.inf
        return found

    monkeypatch.setattr(ImageTrainer, "step", overflowing)
    with pytest.raises(DivergenceError, match=r"weights are no longer finite at step 6 \(epoch \d, batch \d of \d\)"):
        train_images(configure("loop.checkpoint_every_steps=1"), image_set, tmp_path / "run")
    tensors = checkpoint_tensors(tmp_path / "run")
    assert all(bool(value.isfinite().all()) for value in tensors.values() if value.is_floating_point())


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (("sampler.classes_per_batch=9", "memory.capacity=99"), "classes_per_batch=9, but there are"),
            (("loop.metric=recall@7",), r"loop\.metric 'recall@7'.*recall@10"),
            (("data.validation_classes=0",), r"no classes are held out"),
            (("sampler.kind=category",), "the images have none"),
            (("data.validation_classes=0.9",), "too few to hold"),
            (
                ("encoder.preprocess.size=2",),
                r"at least 4, .*raise encoder\.preprocess\.size or lower encoder\.backbone\.blocks",
            ),
        ],
    )
    def test_what_would_fail_later_is_refused_before_anything_is_written(
        self, image_set: ImageSet, configure: Configure, tmp_path: Path, settings: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            train_images(configure(*settings), image_set, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_directory_in_use_is_refused(self, image_set: ImageSet, configure: Configure, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InputError, match="already exists"):
            train_images(configure(), image_set, tmp_path)

    def test_images_without_a_test_split_are_refused(self, configure: Configure, tmp_path: Path) -> None:
        images = prepare_images(write_classes(tmp_path / "source"), out=tmp_path / "data", workers=0, test_classes=0)
        with pytest.raises(InputError, match="no images to evaluate on"):
            train_images(configure(), images, tmp_path / "run")

    def test_a_damaged_run_is_named(self, image_run: Path, tmp_path: Path) -> None:
        out = shutil.copytree(image_run, tmp_path / "run")
        (out / "encoder" / "encoder.safetensors").write_bytes(b"short")
        with pytest.raises(InputError, match=r"encoder\.safetensors: damaged"):
            load_image_run(out)
        shutil.rmtree(out / "encoder")
        with pytest.raises(InputError, match="has not saved a model here yet"):
            load_image_run(out)


def test_without_classes_held_out_all_train_and_the_last_weights_are_kept(
    image_set: ImageSet, configure: Configure, tmp_path: Path
) -> None:
    config = configure("data.validation_classes=0", "loop.metric=latest")
    result = train_images(config, image_set, tmp_path / "run")
    assert result.validation is None
    assert result.state.best_epoch == 2
    assert "All training classes trained, and the last weights were kept" in (tmp_path / "run" / "card.md").read_text()
