"""The benchmark of the memory losses: what it refuses, what it skips with a reason, and what it reports."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from longview.bench import memory_loss as bench
from longview.bench import memory_peers as peers
from longview.bench.memory_loss import bench_memory_loss
from longview.bench.memory_problem import Setting, problem_of
from longview.errors import InputError
from longview.ops.memory_loss import PAIR_LOSSES, SupervisedContrastiveLoss, memory_loss
from longview.ops.memory_loss.buffers import KEPT, forget_buffers

SMALL = Setting(8, 64, 16, "float32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(InputError, match="no CUDA GPU"):
        bench_memory_loss(device="cuda")
    with pytest.raises(InputError, match="expected cpu or cuda"):
        bench_memory_loss(device="tpu")


def test_the_quoted_settings_are_those_of_the_specification() -> None:
    assert [(one.batch, one.rows, one.width) for one in bench.GPU] == [
        (256, 59_551, 512),
        (1024, 262_144, 128),
        (4096, 1_048_576, 128),
    ]


def test_a_measurement_has_every_loss_and_what_one_would_write_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "CPU", (SMALL,))
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)  # compiling takes longer than all the rest
    result = bench_memory_loss(tmp_path / "result.json", rounds=1, peer=True)
    assert json.loads((tmp_path / "result.json").read_text())["settings"] == result["settings"]
    (setting,) = result["settings"]
    assert {*PAIR_LOSSES, "info-nce, moment matching, norms", "chunked torch"} <= set(setting["providers"])
    for row in setting["providers"].values():
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert row["extra_mib"] >= 0
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        assert "not installed" in setting["skipped"]["pytorch-metric-learning"]
    else:
        assert "pytorch-metric-learning, contrastive" in setting["providers"]


def test_a_peer_whose_pairs_do_not_fit_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: object())
    assert "4,294,967,296 pairs" in str(peers.why_no_peer(bench.GPU[2]))
    assert peers.why_no_peer(bench.GPU[0]) is None


def test_memory_on_a_cpu_counts_what_a_loss_keeps_for_the_next_call() -> None:
    problem = problem_of(SMALL, torch.device("cpu"))
    call = bench.our_providers(problem)["circle"]
    forget_buffers()
    call()
    kept = sum(buffer.nbytes for buffer in vars(KEPT).values())
    assert bench._peak(call, torch.device("cpu")) >= kept > 0


@pytest.mark.parametrize("name", [name for name in PAIR_LOSSES if name != "supervised-contrastive"])
def test_what_one_would_write_makes_the_same_losses(name: str) -> None:
    problem = problem_of(SMALL, torch.device("cpu"))
    grads, values = [], []
    for ours in (True, False):
        z = problem.embeddings.detach().requires_grad_()
        inputs, loss = (z, problem.labels, problem.reference, problem.reference_labels), peers.bench_loss(name)
        value = memory_loss(*inputs, loss=loss, reduction="sum") if ours else peers.chunk_of(loss)(*inputs)
        values.append(value.detach())
        grads.append(torch.autograd.grad(value, z)[0])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_chunked_torch_makes_the_same_loss() -> None:
    problem = problem_of(SMALL, torch.device("cpu"))
    inputs = problem.embeddings, problem.labels, problem.reference, problem.reference_labels
    expected = memory_loss(*inputs, loss=SupervisedContrastiveLoss(temperature=peers.TEMPERATURE), reduction="sum")
    torch.testing.assert_close(peers.chunk_loss(*inputs), expected)
