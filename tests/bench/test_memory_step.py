"""The benchmark of training steps with a memory: every provider, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longview.bench import memory_step
from longview.bench.memory_step import Setting, Steps, bench_memory_step, fixed_steps
from longview.bench.timing import turns
from longview.errors import InputError
from longview.metric_learning import CrossBatchLoss
from tests.bench.written import read_written


def test_every_provider_is_timed_beside_plain_xbm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_step, "CPU", (Setting(8, 32, 8),))
    result = bench_memory_step(tmp_path / "step.json", rounds=2)
    assert read_written(tmp_path / "step.json") == result
    (setting,) = result["settings"]
    assert set(setting["providers"]) == set(memory_step.PROVIDERS)
    assert setting["providers"]["XBM"]["over_xbm"] == 0
    for row in setting["providers"].values():
        low, high = row["over_xbm_interval"]
        assert low <= row["over_xbm"] <= high
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]


def test_on_a_gpu_every_provider_is_also_timed_as_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here with graphs that do nothing, of fixed steps on a CPU."""
    monkeypatch.setattr(memory_step, "GPU", (Setting(8, 32, 8),))
    monkeypatch.setattr(memory_step, "Steps", lambda setting, memory, device: Steps(setting, memory, "cpu"))
    monkeypatch.setattr(memory_step, "require_gpu", lambda what: None)
    monkeypatch.setattr(memory_step, "device_turns", turns)
    monkeypatch.setattr(memory_step, "launches", lambda step: 7)
    monkeypatch.setattr(memory_step, "captured", lambda call: SimpleNamespace(replay=lambda: None))
    (setting,) = bench_memory_step(device="cuda", rounds=2)["settings"]
    assert set(setting["providers"]) == set(memory_step.PROVIDERS)
    for row in setting["providers"].values():
        low, high = row["graph_over_xbm_interval"]
        assert low <= row["graph_over_xbm"] <= high
        assert row["graph_ms"] >= 0
    assert setting["providers"]["XBM"]["graph_over_xbm"] == 0


def test_the_memory_is_full_from_the_first_timed_step() -> None:
    setting = Setting(8, 20, 4)
    loss = memory_step._loss(setting, memory_step.PROVIDERS["AXBN"])
    memory_step._fill(loss, setting, "cpu", memory_step.small_encoder(4))  # type: ignore[arg-type]
    assert len(loss.memory) == 20  # type: ignore[arg-type]


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(memory_step.PROVIDERS))
def test_a_fixed_step_is_the_same_step_bit_for_bit(name: str, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is replaced by both on the way; losses are dense, as they are in a graph."""
    made = memory_step._loss

    def dense(setting: Setting, memory: dict[str, Any]) -> torch.nn.Module:
        loss: Any = made(setting, memory)
        (loss.loss if isinstance(loss, CrossBatchLoss) else loss).backend = "reference"
        return loss  # type: ignore[no-any-return]

    monkeypatch.setattr(memory_step, "_loss", dense)
    parts = Setting(8, 28, 8, storage), memory_step.PROVIDERS[name], "cpu"
    plain, fixed = Steps(*parts), fixed_steps(*parts)
    if isinstance(plain.loss, CrossBatchLoss):
        plain()  # the fixed one has done its first
    for _ in range(6):
        assert torch.equal(plain(), fixed())
    if isinstance(plain.loss, CrossBatchLoss) and isinstance(fixed.loss, CrossBatchLoss):
        assert fixed.loss.fixed is not None
        fixed.loss.release()
        plain.loss.memory.read()  # the newest batch enters the ring, as it has there
    for module, other in ((plain.loss, fixed.loss), (plain.encoder, fixed.encoder)):
        expected = module.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in other.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", list(memory_step.PROVIDERS))
def test_a_replay_is_a_step(name: str) -> None:
    steps = fixed_steps(Setting(8, 28, 8, "bfloat16"), memory_step.PROVIDERS[name], "cuda")
    step, weight = steps.replay(), next(steps.encoder.parameters())
    for _ in range(5):
        ids, before = steps.ids.clone(), weight.detach().clone()
        step()
        assert torch.equal(steps.ids, ids + 8)
        assert not torch.equal(weight, before)
        if isinstance(steps.loss, CrossBatchLoss):
            assert torch.isin(steps.ids, steps.loss.memory.queue.sample_ids).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_cannot_be_timed_is_refused() -> None:
    with pytest.raises(InputError, match="no CUDA GPU"):
        bench_memory_step(device="cuda")
    with pytest.raises(InputError, match="expected cpu or cuda"):
        bench_memory_step(device="tpu")
