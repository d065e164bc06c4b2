"""A run: it learns, resumes bit for bit, stops when it should, and never loses what it had."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.evaluation import evaluate
from longview.training import InterruptedRunError, load_model, loop, train
from longview.training.checkpoint import latest_checkpoint
from longview.training.config import RunConfig
from longview.training.log import read_log
from longview.training.loop import DivergenceError
from longview.training.progress import Status, TrainingProgress
from longview.training.trainer import Trainer

Configure = Callable[..., RunConfig]
MakeTiny = Callable[[int], PreparedData]


class SignalAt(TrainingProgress):
    """Sends this process a signal when step `number` of the run has been shown."""

    def __init__(self, number: int, kind: signal.Signals = signal.SIGINT) -> None:
        self.left, self.kind = number, kind

    def step(self, status: Status) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.kind)


class Notes(TrainingProgress):
    """Keeps what the run says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def checkpoint_tensors(out: Path) -> dict[str, torch.Tensor]:
    path = latest_checkpoint(out / "checkpoint")
    assert path is not None
    return load_file(path.with_suffix(".safetensors"))


def assert_same_state(one: Path, other: Path) -> None:
    a, b = checkpoint_tensors(one), checkpoint_tensors(other)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different
    best = [load_file(path / "model.safetensors") for path in (one, other)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_it_learns_what_follows_what(tiny: PreparedData, tiny_config: Configure, tmp_path: Path, loss: str) -> None:
    config = tiny_config("loop.epochs=20", f"loss.kind={loss}", "loss.num_negatives=12", "loss.negative_groups=2")
    result = train(config, tiny, tmp_path / "run", baselines=True)
    popularity = next(report for report in result.baselines if report.name == "popularity")
    assert result.test.metrics["hr@5"] > 0.8 > popularity.metrics["hr@5"]
    first, last = result.state.epochs[0], result.state.epochs[-1]
    assert last["loss"] < first["loss"] / 2


class TestResume:
    VARIANTS = (
        ("loss.kind=full", "optimiser.average_decay=0.9", "optimiser.decay=cosine"),
        (
            "loss.kind=sampled",
            "loss.sampling=popularity",
            "loss.num_negatives=8",
            "batches.windows=random",
            "batches.shuffle_ties=true",
        ),
        ("loss.kind=sampled", "loss.sampling=in-batch", "batches.batch_size=null", "batches.token_budget=90"),
        ("loss.kind=sampled", "loss.num_negatives=8", "optimiser.tables=rowwise", "optimiser.average_decay=0.9"),
    )

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_two_epochs_are_one_and_a_resumed_one(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path, variant: tuple[str, ...]
    ) -> None:
        config = tiny_config("model.max_length=6", *variant)
        first = tiny_config("model.max_length=6", *variant, "loop.max_minutes=1e-9")  # stops after one epoch
        straight = train(config, tiny, tmp_path / "straight")
        assert len(train(first, tiny, tmp_path / "halves").state.epochs) == 1
        resumed = train(config, tiny, tmp_path / "halves", resume=True)
        assert_same_state(tmp_path / "straight", tmp_path / "halves")
        assert resumed.test.metrics == straight.test.metrics
        assert [e["loss"] for e in resumed.state.epochs] == [e["loss"] for e in straight.state.epochs]

    @pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_in_mid_epoch_resumes_bit_for_bit(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path, kind: signal.Signals
    ) -> None:
        config = tiny_config("loss.kind=sampled", "loss.num_negatives=8", "optimiser.average_decay=0.9")
        straight = train(config, tiny, tmp_path / "straight")
        with pytest.raises(InterruptedRunError, match=r"epoch 2, step 2; the checkpoint is in .*resume"):
            train(config, tiny, tmp_path / "broken", progress=SignalAt(6, kind))
        resumed = train(config, tiny, tmp_path / "broken", resume=True)
        assert_same_state(tmp_path / "straight", tmp_path / "broken")
        assert [e["loss"] for e in resumed.state.epochs] == [e["loss"] for e in straight.state.epochs]
        steps = [r["step"] for r in read_log(tmp_path / "broken" / "log.jsonl") if r["event"] == "epoch"]
        assert steps == [4, 8], "each epoch is logged once"

    def test_a_process_killed_between_checkpoints_resumes_bit_for_bit(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = tiny_config("loop.checkpoint_every_steps=3", "loop.epochs=3")
        train(config, tiny, tmp_path / "straight")
        step = Trainer.step

        def dies(self: Trainer, batch: Any, number: int) -> Any:
            if number == 7:
                raise KeyboardInterrupt  # as abrupt as it gets without leaving the test
            return step(self, batch, number)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", dies)
            with pytest.raises(KeyboardInterrupt):
                train(config, tiny, tmp_path / "killed")
        train(config, tiny, tmp_path / "killed", resume=True)
        assert_same_state(tmp_path / "straight", tmp_path / "killed")

    def test_killed_before_the_first_checkpoint_it_starts_again(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = tiny_config("loop.epochs=1")

        def dies(*_: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", dies)
            with pytest.raises(KeyboardInterrupt):
                train(config, tiny, tmp_path / "killed")
        train(config, tiny, tmp_path / "killed", resume=True)
        train(config, tiny, tmp_path / "straight")
        assert_same_state(tmp_path / "straight", tmp_path / "killed")

    def test_another_configuration_is_refused_by_key(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path
    ) -> None:
        train(tiny_config("loop.epochs=1"), tiny, tmp_path / "run")
        with pytest.raises(InputError, match=r"model\.dropout, optimiser\.rate differ"):
            train(tiny_config("model.dropout=0.3", "optimiser.rate=0.1"), tiny, tmp_path / "run", resume=True)

    def test_another_data_set_is_refused(
        self, tiny: PreparedData, make_tiny: MakeTiny, tiny_config: Configure, tmp_path: Path
    ) -> None:
        train(tiny_config("loop.epochs=1"), tiny, tmp_path / "run")
        with pytest.raises(InputError, match="fingerprint"):
            train(tiny_config(), make_tiny(1), tmp_path / "run", resume=True)

    def test_nothing_to_resume_is_said(self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no run to resume"):
            train(tiny_config(), tiny, tmp_path / "run", resume=True)

    def test_the_callers_random_stream_is_left_alone(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path
    ) -> None:
        before = torch.get_rng_state()
        train(tiny_config("loop.epochs=1"), tiny, tmp_path / "run")
        assert torch.equal(before, torch.get_rng_state())
        assert not torch.are_deterministic_algorithms_enabled()


class TestSelection:
    def test_the_model_kept_is_the_best_on_validation(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path
    ) -> None:
        config = tiny_config("loop.epochs=12", "loop.patience=2", "optimiser.rate=0.1", "optimiser.clip_norm=null")
        result = train(config, tiny, tmp_path / "run")
        seen = {e["epoch"]: e["ndcg@10"] for e in result.state.epochs}
        assert seen[result.best_epoch] == max(seen.values())
        loaded = load_model(tmp_path / "run")
        assert evaluate(loaded.model, tiny, "validation", resamples=0).metrics["ndcg@10"] == max(seen.values())
        assert loaded.result is not None
        assert loaded.result["test"]["metrics"] == result.test.metrics

    def test_patience_counts_evaluations_without_gain(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path
    ) -> None:
        config = tiny_config("loop.epochs=40", "loop.patience=2", "loop.evaluate_every=2", "optimiser.rate=1e-9")
        result = train(config, tiny, tmp_path / "run")
        assert result.state.stopped == "patience"
        assert len(result.state.epochs) == result.best_epoch + 4
        assert [e["epoch"] for e in result.state.epochs if "ndcg@10" in e] == list(range(2, result.best_epoch + 5, 2))

    def test_the_clock_stops_it(self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path) -> None:
        result = train(tiny_config("loop.epochs=50", "loop.max_minutes=1e-9"), tiny, tmp_path / "run")
        assert (result.state.stopped, len(result.state.epochs)) == ("max_minutes", 1)

    def test_a_run_that_never_reached_an_evaluation_still_ends_with_one(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path
    ) -> None:
        config = tiny_config("loop.epochs=9", "loop.evaluate_every=5", "loop.max_minutes=1e-9")
        result = train(config, tiny, tmp_path / "run")
        assert result.best_epoch == 1

    def test_the_weight_average_is_what_is_evaluated_and_saved(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path
    ) -> None:
        train(tiny_config("loop.epochs=1", "optimiser.average_decay=0.9"), tiny, tmp_path / "run")
        saved, state = load_file(tmp_path / "run" / "model.safetensors"), checkpoint_tensors(tmp_path / "run")
        assert all(torch.equal(saved[name], state[f"average.{name}"]) for name in saved)
        assert not torch.equal(saved["embedding.items.weight"], state["model.embedding.items.weight"])


class TestTrouble:
    def test_a_loss_that_is_no_number_stops_and_names_the_step(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = Trainer.step

        def poisoned(self: Trainer, batch: Any, number: int) -> Any:
            if number == 6:
                with torch.no_grad():
                    self.model.embedding.items.weight[0] = float("nan")
            return step(self, batch, number)

        monkeypatch.setattr(Trainer, "step", poisoned)
        with pytest.raises(DivergenceError, match=r"the loss became nan at step 7 \(epoch 2, batch \d of \d\)"):
            train(tiny_config(), tiny, tmp_path / "run")
        assert all(t.isfinite().all() for t in checkpoint_tensors(tmp_path / "run").values())
        assert load_model(tmp_path / "run").result is None
        assert read_log(tmp_path / "run" / "log.jsonl")[-1]["event"] == "diverged"

    @pytest.mark.parametrize("every", ["loop.evaluate_every=2", "loop.evaluate_every=1"])
    @pytest.mark.parametrize("average", ["optimiser.average_decay=0.9", "optimiser.average_decay=0"])
    def test_weights_that_the_last_step_of_an_epoch_broke_are_neither_evaluated_nor_saved(
        self,
        tiny: PreparedData,
        tiny_config: Configure,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        every: str,
        average: str,
    ) -> None:
        step = Trainer.step

        def overflowing(self: Trainer, batch: Any, number: int) -> Any:
            found = step(self, batch, number)
            if number + 1 == 2 * self.planned_steps // 3:  # of the second epoch, with a loss like any other
                with torch.no_grad():
                    self.model.embedding.items.weight[0, 0] = float("inf")
            return found

        monkeypatch.setattr(Trainer, "step", overflowing)
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(
            DivergenceError, match=r"weights are no longer finite at step (\d+) \(epoch 2, batch (\d+) of \2\)"
        ):
            train(tiny_config("loop.epochs=3", every, average), tiny, tmp_path / "run")
        tensors = checkpoint_tensors(tmp_path / "run")
        assert tensors
        assert all(t.isfinite().all() for t in tensors.values())
        last = read_log(tmp_path / "run" / "log.jsonl")[-1]
        assert (last["event"], last["epoch"]) == ("diverged", 2)

    def test_broken_weights_are_not_saved_in_the_middle_of_an_epoch(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = Trainer.step

        def overflowing(self: Trainer, batch: Any, number: int) -> Any:
            found = step(self, batch, number)
            if number == 1:
                with torch.no_grad():
                    self.model.embedding.items.weight[0, 0] = float("nan")
            return found

        monkeypatch.setattr(Trainer, "step", overflowing)
        with pytest.raises(DivergenceError, match=r"weights are no longer finite at step 2 \(epoch 1, batch 2 of"):
            train(tiny_config("loop.checkpoint_every_steps=1"), tiny, tmp_path / "run")
        assert all(t.isfinite().all() for t in checkpoint_tensors(tmp_path / "run").values())

    def test_after_the_first_evaluation_an_interrupted_run_is_a_usable_model(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path
    ) -> None:
        with pytest.raises(InterruptedRunError):
            train(tiny_config(), tiny, tmp_path / "run", progress=SignalAt(5))
        assert evaluate(load_model(tmp_path / "run").model, tiny, "validation", resamples=0).num_users == 60

    def test_a_finished_run_says_that_it_only_evaluates_again(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path
    ) -> None:
        first = train(tiny_config(), tiny, tmp_path / "run")
        notes = Notes()
        assert train(tiny_config(), tiny, tmp_path / "run", resume=True, progress=notes).test.metrics == (
            first.test.metrics
        )
        assert notes.texts == [
            "the training was done after 2 epochs: only evaluating again",
            "evaluating the best weights on test",
        ]
        with pytest.raises(InputError, match="go on with it by --resume"):
            train(tiny_config(), tiny, tmp_path / "run")

    def test_a_directory_in_use_is_left_alone(self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.txt").write_text("three years")
        with pytest.raises(InputError, match="already exists; choose another directory, or empty it"):
            train(tiny_config(), tiny, tmp_path / "run")
        assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("loop.metric=recall@10", "recall@10.*use hr@K"),
            ("loss.label_smoothing=0.1", "label_smoothing.*full"),
        ],
    )
    def test_what_cannot_work_is_refused_before_anything_is_written(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path, override: str, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            train(tiny_config("loss.kind=sampled", override), tiny, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("device", ["gpu", *([] if torch.cuda.is_available() else ["cuda"])])
    def test_a_device_that_is_not_there(
        self, tiny: PreparedData, tiny_config: Configure, tmp_path: Path, device: str
    ) -> None:
        with pytest.raises(InputError, match="device"):
            train(tiny_config(), tiny, tmp_path / "run", device=device)

    def test_without_a_validation_user_there_is_nothing_to_select_by(
        self, tiny_config: Configure, tmp_path: Path
    ) -> None:
        import numpy as np
        import pyarrow as pa

        from longview.data.dataset import write_prepared
        from longview.data.meta import SplitSpec

        data = write_prepared(
            tmp_path / "short",
            name="short",
            events={"item": np.array([0, 1, 1, 0], np.int32)},
            users=pa.table({"id": ["a", "b"], "length": [2, 2]}),
            items=pa.table({"id": ["x", "y"]}),
            split=SplitSpec(),
        )
        with pytest.raises(InputError, match="no user"):
            train(tiny_config(), data, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_the_run_directory_says_what_was_done(tiny: PreparedData, tiny_config: Configure, tmp_path: Path) -> None:
    result = train(tiny_config(), tiny, tmp_path / "run", baselines=True)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert written["data"]["fingerprint"] == tiny.fingerprint
    assert written["environment"]["torch"] == torch.__version__
    assert {r["name"] for r in written["baselines"]} >= {"popularity", "item-knn", "ease"}
    assert "Protocol" in (tmp_path / "run" / "card.md").read_text()
    events = [r["event"] for r in read_log(tmp_path / "run" / "log.jsonl")]
    assert events == ["start", "epoch", "evaluation", "epoch", "evaluation", "stop"]


def test_tensorboard_gets_the_numbers(tiny: PreparedData, tiny_config: Configure, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(tiny_config("loop.tensorboard=true", "loop.epochs=1"), tiny, tmp_path / "run")
    files = list((tmp_path / "run" / "tensorboard").iterdir())
    assert files
    assert b"epoch/loss" in files[0].read_bytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gpu_trains_resumes_and_its_model_loads_on_a_cpu(
    tiny: PreparedData, tiny_config: Configure, tmp_path: Path, precision: str
) -> None:
    config = tiny_config("loss.kind=sampled", "loop.epochs=20", f"loop.precision={precision}")
    with pytest.raises(InterruptedRunError):
        train(config, tiny, tmp_path / "run", device="cuda", progress=SignalAt(1))
    result = train(config, tiny, tmp_path / "run", device="cuda", resume=True)
    assert result.test.metrics["hr@5"] > 0.8
    on_cpu = evaluate(load_model(tmp_path / "run").model, tiny, "test", resamples=0)
    assert on_cpu.metrics["ndcg@10"] == pytest.approx(result.test.metrics["ndcg@10"], abs=0.02)
