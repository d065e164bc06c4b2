"""What a run says of its memory."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from longview.errors import InputError
from longview.metric_learning import CrossBatchLoss, DriftDiagnostics, MemoryWarning
from longview.metric_learning.diagnostics_plot import draw_drift
from tests.metric_learning.helpers import WIDTH, memory

LABELS = torch.arange(20) // 2


def probe() -> torch.Tensor:
    return torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(9))


class Moving(nn.Module):
    """Embeds by a turn, which moment matching cannot undo, and a shift, which it can; a test moves both."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.angle = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(()))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.drop(x).chunk(2, 1)
        sine, cosine = self.angle.sin(), self.angle.cos()
        return torch.cat([cosine * left - sine * right, sine * left + cosine * right], 1) + self.shift


def run(drift: dict[str, Any], move: float, *, turn: float = 0.0, steps: int = 40, **settings: Any) -> DriftDiagnostics:
    loss = CrossBatchLoss(
        "contrastive", memory(drift, storage="float32", moments="float32", **settings), normalise=False
    )
    encoder = Moving().eval()
    diagnostics = DriftDiagnostics(loss, encoder, probe(), LABELS, every=5)
    source = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MemoryWarning)
        for _ in range(steps):
            x, labels = torch.randn(8, WIDTH, generator=source), torch.arange(8) // 2
            loss(encoder(x), labels)
            with torch.no_grad():
                encoder.shift += move
                encoder.angle += turn
            diagnostics.after_step()
    return diagnostics


def test_nothing_moves_and_nothing_drifts() -> None:
    last = run({"kind": "none"}, 0.0).records[-1]
    assert [row["age"] for row in last["by_age"]] == [5, 10, 15, 20, 25, 30, 35]
    for row in last["by_age"]:
        assert row["cosine_before"] == pytest.approx(0, abs=1e-6)
        assert row["moments_before"] == pytest.approx(0, abs=1e-6)
        assert row["agreement_before"] == pytest.approx(1, abs=1e-5)
    assert last["memory"] == {"rows": 40, "mean_age": 3.0, "max_age": 5}


def test_drift_grows_with_age_and_an_exact_correction_takes_it_back() -> None:
    plain, adaptive = run({"kind": "none"}, 0.05).records[-1], run({"kind": "axbn"}, 0.05).records[-1]
    drifts = [row["cosine_before"] for row in plain["by_age"]]
    assert drifts == sorted(drifts)
    assert drifts[0] > 1e-4
    for row in plain["by_age"]:
        assert row["moments_before"] == row["moments_after"]
        # Every dimension has moved by 0.05 a step, in units of its own spread.
        assert row["moments_before"] == pytest.approx(0.05 * row["age"] * plain_scale(), rel=1e-3)
    # The batches are random, so the filter is not exact; over long ages it takes most of the drift back.
    assert adaptive["by_age"][-1]["moments_after"] < 0.6 * adaptive["by_age"][-1]["moments_before"]
    assert adaptive["by_age"][-1]["cosine_after"] < 0.2 * adaptive["by_age"][-1]["cosine_before"]
    assert adaptive["by_age"][-1]["agreement_after"] > adaptive["by_age"][-1]["agreement_before"]
    assert 0 < adaptive["gain"]["mean"] < 1


def plain_scale() -> float:
    return float((1 / probe().std(0, correction=0).square()).mean().sqrt())


def test_a_memory_that_misleads_is_warned_of_with_a_remedy() -> None:
    found = run({"kind": "none"}, 0.0, turn=0.2, capacity=200).warnings
    assert found
    assert "worse than none" in found[-1]
    assert "try age_limit=" in found[-1] or "smaller memory" in found[-1]
    assert not run({"kind": "none"}, 0.0, turn=0.01).warnings


def test_a_correction_that_is_noise_is_warned_of() -> None:
    """Two classes a batch and no drift: matching their moments only moves rows about."""
    matched = run({"kind": "xbn"}, 0.0)
    assert any("further from the current ones" in message for message in matched.warnings)
    filtered, plain = run({"kind": "axbn"}, 0.0), run({"kind": "none"}, 0.0)
    noise = [sum(row["cosine_after"] for row in d.records[-1]["by_age"]) for d in (matched, filtered, plain)]
    assert noise[0] > 2 * noise[1] > noise[2] == pytest.approx(0, abs=1e-5)


def test_the_warning_is_one_of_python() -> None:
    diagnostics = run({"kind": "none"}, 0.0, turn=0.2, capacity=200)
    with pytest.warns(MemoryWarning, match="worse than none"):
        diagnostics.record()


def test_the_encoder_and_the_random_state_are_left_as_they_were() -> None:
    diagnostics = run({"kind": "axbn"}, 0.01)
    encoder: Any = diagnostics.encoder
    encoder.train()
    encoder.drop.eval()
    before, state = copy.deepcopy(diagnostics.loss.memory.drift_state), torch.get_rng_state()
    diagnostics.record()
    assert encoder.training
    assert not encoder.drop.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, diagnostics.loss.memory.drift_state, strict=True))


def test_share_of_the_loss() -> None:
    diagnostics = run({"kind": "none"}, 0.0, steps=5)
    assert diagnostics.loss.parts is not None
    diagnostics.loss(torch.randn(8, WIDTH), torch.arange(8) // 2)
    batch, other = diagnostics.loss.parts
    assert diagnostics.after_step() is None
    record = diagnostics.record()
    assert record["share_of_loss_from_memory"] == pytest.approx(float(other / (batch + other)), rel=1e-5)


def test_a_resumed_run_records_the_same() -> None:
    whole = run({"kind": "axbn"}, 0.02)
    other = DriftDiagnostics(whole.loss, whole.encoder, probe(), LABELS, every=5)
    other.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert other.record() == whole.record()


def test_one_json_and_one_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    diagnostics = run({"kind": "axbn"}, 0.05)
    report = json.loads(json.dumps(diagnostics.report()))
    assert report["memory"]["drift"]["kind"] == "axbn"
    draw_drift(tmp_path / "drift.png", report)
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="no two records"):
        draw_drift(tmp_path / "none.png", run({"kind": "axbn"}, 0.0, steps=5).report())
    assert not (tmp_path / "none.png").exists()


def test_a_probe_without_pairs_is_refused() -> None:
    loss = CrossBatchLoss("circle", memory())
    with pytest.raises(InputError, match="alone in its class"):
        DriftDiagnostics(loss, nn.Identity(), probe(), torch.arange(20))
    with pytest.raises(InputError, match="every=0"):
        DriftDiagnostics(loss, nn.Identity(), probe(), LABELS, every=0)
