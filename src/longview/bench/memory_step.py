"""Training steps of a small convolutional encoder without a memory, with one, and with each way to correct its drift.

A step is forward, loss over batch and memory, backward and the optimiser. Every provider has an encoder, a memory that
is full and an optimiser of its own; inputs are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longview.bench.device import clocks, device_turns, launches, require_gpu
from longview.bench.record import write_result
from longview.bench.timing import Timing, paired_ratio, turns
from longview.config import parse
from longview.errors import InputError
from longview.evaluation.environment import environment
from longview.metric_learning import CrossBatchLoss, MemoryConfig, PairwiseLoss
from longview.ops.memory_loss import ContrastiveLoss

CHANNELS, SAMPLES, SIDE = 64, 4, 28
WARM_UP = 5  # steps after the memory has been replaced
METHOD = (
    f"four 3×3 convolutions of {CHANNELS} channels with batch normalisation on {SIDE}×{SIDE} grey images, one linear "
    f"layer; batches of {SAMPLES} images a class; contrastive loss over batch and full memory, which begins with what "
    "the encoder makes of noise and is timed once the run has replaced it; sample ids given, values checked; AdamW; "
    "providers take turns within one run; medians "
    "of wall-clock time on a CPU and of CUDA events on a GPU; over_xbm: median over rounds of the ratio to plain XBM "
    "in the same round, minus 1, with its 95 % interval; launches: kernels, copies and fills of a step on a GPU"
)
PROVIDERS: dict[str, dict[str, Any]] = {
    "no memory": {},
    "XBM": {"drift": {"kind": "none"}},
    "XBM, renormalised": {"drift": {"kind": "none"}, "renormalise": True},
    "XBN": {"drift": {"kind": "xbn"}},
    "AXBN": {"drift": {"kind": "axbn"}},
    "AXBN, constant noise": {"drift": {"kind": "axbn", "noise": "constant", "process": "constant"}},
    "moving average": {"drift": {"kind": "moving-average"}},
}


class Setting(NamedTuple):
    """Rows of a batch, rows of the memory, width of both, and how rows are stored."""

    batch: int
    memory: int
    width: int
    storage: str = "float32"


CPU = (Setting(64, 10_000, 128),)
GPU = (Setting(64, 10_000, 128, "bfloat16"), Setting(256, 59_551, 512, "bfloat16"))


def bench_memory_step(json: Path | None = None, *, device: str = "cpu", rounds: int = 100) -> dict[str, Any]:
    """Time training steps on `device`.

    Args:
        json: also write the result there, after every setting.
        device: `cpu` or `cuda`.
        rounds: timed steps of each provider.

    Raises:
        InputError: another device, no CUDA GPU, or fewer than one round.
    """
    if device not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: expected cpu or cuda")
    if device == "cuda":
        require_gpu("memory-step")
    result: dict[str, Any] = {
        "benchmark": f"training step with an embedding memory on a {'GPU' if device == 'cuda' else 'CPU'}",
        "method": METHOD,
        "rounds": rounds,
        "settings": [],
        "environment": environment(),
    }
    for setting in GPU if device == "cuda" else CPU:
        steps = {name: step_of(setting, memory, device) for name, memory in PROVIDERS.items()}
        take_turns = device_turns if device == "cuda" else turns
        # By then the memory is made of batches of the run: before, XBM's old rows are over no margin and cost less.
        rows = _rows(take_turns(steps, rounds=rounds, warm_up=-(-setting.memory // setting.batch) + WARM_UP))
        if device == "cuda":
            for name, step in steps.items():
                rows[name]["launches"] = launches(step)
            result["clocks"] = clocks()
        result["settings"].append({**setting._asdict(), "providers": rows})
        if json is not None:
            write_result(json, result)
    return result


def step_of(setting: Setting, memory: dict[str, Any], device: str) -> Callable[[], None]:
    """Return a training step; `memory` is the part of a `MemoryConfig` that a provider chooses, empty for none."""
    torch.manual_seed(0)
    encoder = small_encoder(setting.width).to(device)
    optimiser = torch.optim.AdamW(encoder.parameters(), fused=device == "cuda")
    loss = _loss(setting, memory).to(device)
    labels = torch.arange(setting.batch // SAMPLES, device=device).repeat_interleave(SAMPLES)
    images = torch.randn(setting.batch, 1, SIDE, SIDE, device=device)
    ids = torch.arange(setting.batch, device=device)
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        z = nn.functional.normalize(encoder(images), dim=1)
        if isinstance(loss, CrossBatchLoss):
            value: Tensor = loss(z, labels, ids + count * setting.batch)
        else:
            value = loss(z, labels)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()

    if isinstance(loss, CrossBatchLoss):
        _fill(loss, setting, device, encoder)
    return step


def small_encoder(width: int) -> nn.Sequential:
    """Return the encoder of the benchmark: (b, 1, 28, 28) to (b, width)."""
    blocks: list[nn.Module] = []
    for channels in (1, CHANNELS, CHANNELS, CHANNELS):
        blocks += [nn.Conv2d(channels, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(CHANNELS * (SIDE // 16) ** 2, width))


def _loss(setting: Setting, memory: dict[str, Any]) -> nn.Module:
    if not memory:
        return PairwiseLoss(ContrastiveLoss())
    config = {"capacity": setting.memory, "width": setting.width, "storage": setting.storage, **memory}
    return CrossBatchLoss(ContrastiveLoss(), parse(MemoryConfig, config, "memory-step"), normalise=False)


def _fill(loss: CrossBatchLoss, setting: Setting, device: str, encoder: nn.Module) -> None:
    """Fill the memory with what the encoder makes of noise: of other rows a loss might have less to do than it has."""
    classes = setting.batch // SAMPLES
    first = 1 << 40  # ids of a sort of their own

    def batches() -> Any:
        for place in range(first, first + setting.memory, setting.batch):
            z = nn.functional.normalize(encoder(torch.randn(setting.batch, 1, SIDE, SIDE, device=device)), dim=1)
            labels = torch.randint(50 * classes, (setting.batch,), device=device)
            yield z, labels, torch.arange(place, place + setting.batch, device=device)

    loss.memory.fill(batches())


def _rows(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for name, spent in seconds.items():
        over = [round(ratio - 1, 4) for ratio in paired_ratio(spent, seconds["XBM"])]
        rows[name] = {**Timing.of(spent).as_dict(), "over_xbm": over[0], "over_xbm_interval": over[1:]}
    return rows
