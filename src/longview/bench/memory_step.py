"""Training steps of a small convolutional encoder without a memory, with one, and with each way to correct its drift.

A step is forward, loss over batch and memory, backward and the optimiser. Every provider has an encoder, a memory that
is full and an optimiser of its own; inputs are the same. On a GPU steps are timed as they are launched, and again as
CUDA graphs, which is how a run trains there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longview.bench.device import captured, clocks, device_turns, launches, require_gpu
from longview.bench.record import write_result
from longview.bench.timing import Timing, paired_ratio, turns
from longview.config import parse
from longview.errors import InputError
from longview.evaluation.environment import environment
from longview.metric_learning import CrossBatchLoss, MemoryConfig, PairwiseLoss
from longview.ops.memory_loss import ContrastiveLoss

CHANNELS, SAMPLES, SIDE = 64, 4, 28
LEAD, STEPS = 1, 4  # steps of a turn on a GPU: not timed, and timed
WARM_UP = 5  # steps after the memory has been replaced
METHOD = (
    f"four 3×3 convolutions of {CHANNELS} channels with batch normalisation on {SIDE}×{SIDE} grey images, one linear "
    f"layer; batches of {SAMPLES} images a class; contrastive loss over batch and full memory, which begins with what "
    "the encoder makes of noise and is timed once the run has replaced it; sample ids given, values checked; AdamW; "
    "providers take turns within one run, on a GPU of "
    f"{LEAD} step that is not timed and {STEPS} that are, one after the other as in a run; medians of a step's "
    "wall-clock time on a CPU and by CUDA events on a GPU; over_xbm: median over rounds of the ratio to plain XBM in "
    "the same round, minus 1, with its 95 % interval; launches: kernels, copies and fills of a step on a GPU; "
    "graph_ms and graph_over_xbm: the same of steps as CUDA graphs, which is how a run trains on a GPU: the memory's "
    "fixed steps, values checked on the device, the batch against itself by dense torch, and AdamW, replayed with one "
    "launch, in rounds of their own, once these have replaced the memory"
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
        rounds: timed turns of each provider: a step, on a GPU several.

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
        steps = {name: Steps(setting, memory, device) for name, memory in PROVIDERS.items()}
        take_turns, lead, calls = (device_turns, LEAD, STEPS) if device == "cuda" else (turns, 0, 1)
        # By then the memory is made of batches of the run: before, XBM's old rows are over no margin and cost less.
        replaced = -(-setting.memory // setting.batch) + WARM_UP
        timed = partial(take_turns, rounds=rounds, warm_up=-(-replaced // (lead + calls)), lead=lead, calls=calls)
        rows = _rows(timed(steps))
        if device == "cuda":
            for name, step in steps.items():
                rows[name]["launches"] = launches(step)
            replays = {name: fixed_steps(setting, memory, device).replay() for name, memory in PROVIDERS.items()}
            for name, row in _rows(timed(replays)).items():
                rows[name] |= {
                    "graph_ms": row["median_ms"],
                    "graph_over_xbm": row["over_xbm"],
                    "graph_over_xbm_interval": row["over_xbm_interval"],
                }
            result["clocks"] = clocks()
        result["settings"].append({**setting._asdict(), "providers": rows})
        if json is not None:
            write_result(json, result)
    return result


class Steps:
    """Training steps of one provider; a call does one, launch by launch, and returns its loss, a scalar.

    `memory` is the part of a `MemoryConfig` that a provider chooses, empty for none.
    """

    def __init__(self, setting: Setting, memory: dict[str, Any], device: str) -> None:
        torch.manual_seed(0)
        self.encoder = small_encoder(setting.width).to(device)
        self.optimiser = torch.optim.AdamW(self.encoder.parameters(), fused=device == "cuda")
        self.loss = _loss(setting, memory).to(device)
        self.labels = torch.arange(setting.batch // SAMPLES, device=device).repeat_interleave(SAMPLES)
        self.images = torch.randn(setting.batch, 1, SIDE, SIDE, device=device)
        self.ids = torch.arange(setting.batch, device=device)
        if isinstance(self.loss, CrossBatchLoss):
            _fill(self.loss, setting, device, self.encoder)

    def __call__(self) -> Tensor:
        value = self.work()
        self.advance()
        return value

    def work(self) -> Tensor:
        """Do what a step does on the device."""
        self.optimiser.zero_grad()
        self.ids += len(self.ids)
        z = nn.functional.normalize(self.encoder(self.images), dim=1)
        more = (self.ids,) if isinstance(self.loss, CrossBatchLoss) else ()
        value: Tensor = self.loss(z, self.labels, *more)
        value.backward()  # type: ignore[no-untyped-call]
        if isinstance(self.loss, CrossBatchLoss) and self.loss.fixed is not None:
            self.loss.fixed.enqueue()
        self.optimiser.step()
        return value.detach()

    def advance(self) -> None:
        """Count a fixed step on the host."""
        if isinstance(self.loss, CrossBatchLoss) and self.loss.fixed is not None:
            self.loss.fixed.advance()

    def replay(self) -> Callable[[], None]:
        """Return the step as a CUDA graph. What is launched before the recording is not counted on the host."""
        for group in self.optimiser.param_groups:
            group["capturable"] = True
        graph = captured(self.work)

        def step() -> None:
            graph.replay()
            self.advance()

        return step


def fixed_steps(setting: Setting, memory: dict[str, Any], device: str) -> Steps:
    """Return steps that are the same operations each time, as a graph needs them."""
    steps = Steps(setting, memory, device)
    if isinstance(steps.loss, CrossBatchLoss):
        steps()  # a memory's first step is not like the others
        steps.loss.fix(setting.batch)
    elif isinstance(steps.loss, PairwiseLoss):
        steps.loss.backend = "reference"  # which does not look at what it compares
    return steps


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
