"""The losses over batch × memory, forward and backward, beside plain torch and pytorch-metric-learning, in one run.

`extra_mib` is what a call needs beyond its inputs at most, the batch's gradient included.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from longview.bench.device import captured, clocks, device_interleaved, require_gpu
from longview.bench.record import write_result
from longview.bench.timing import interleaved
from longview.config import parse
from longview.errors import InputError
from longview.evaluation.environment import environment
from longview.ops.memory_loss import PAIR_LOSSES, memory_loss

Call = Callable[[], object]
MIB = 1 << 20
TEMPERATURE = 0.1
PEER = "pytorch-metric-learning"
CLASSES = 5.26  # images of a class in the training half of Stanford Online Products
METHOD = (
    "forward and backward, gradient to the batch; unit vectors, four of a class in a batch, classes of 5.26 rows in "
    "the memory; providers take turns within one run; medians; extra_mib: largest sum of allocations within a call; "
    "on a GPU median_ms is launch by launch, the host's time included where it is the longer, and graph_ms the replay "
    "of a captured graph, the device's time alone. "
    "Chunked torch is the supervised contrastive loss with logits of a chunk of the batch at a time, backward after "
    "each; its products are in the dtype of the memory. pytorch-metric-learning is its CrossBatchMemory in float32, "
    "which also enqueues the batch"
)


class Setting(NamedTuple):
    """A batch against a memory of `rows`, stored in `dtype`."""

    batch: int
    rows: int
    width: int
    dtype: str


GPU = (
    Setting(256, 59_551, 512, "bfloat16"),
    Setting(1024, 262_144, 128, "bfloat16"),
    Setting(4096, 1_048_576, 128, "bfloat16"),
)
CPU = (Setting(64, 59_551, 128, "float32"), Setting(256, 59_551, 128, "float32"), Setting(256, 59_551, 128, "bfloat16"))
VIEWS = ("info-nce", "contrastive")  # the losses that are also timed with moment matching and norms
PEER_PAIRS = 1 << 29  # entries of b × m up to which the peer's lists of pairs are tried


class Problem(NamedTuple):
    """Inputs of one setting."""

    embeddings: Tensor
    labels: Tensor
    reference: Tensor
    reference_labels: Tensor
    affine: tuple[Tensor, Tensor]


def bench_memory_loss(
    json: Path | None = None, *, device: str = "cpu", rounds: int = 20, peer: bool = False
) -> dict[str, Any]:
    """Time every loss of `ops.memory_loss`, the three views of the memory, and what one would write instead.

    Args:
        json: also write the result there, after each setting.
        device: `cpu` or `cuda`.
        rounds: timed rounds of each setting.
        peer: also time pytorch-metric-learning, where it is installed; otherwise the result says why not.

    Raises:
        InputError: no CUDA device, another device, or fewer than one round.
    """
    if device not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: expected cpu or cuda")
    if device == "cuda":
        require_gpu("memory-loss")
    result: dict[str, Any] = {
        "benchmark": f"losses over batch × memory, {device}",
        "method": METHOD,
        "rounds": rounds,
        "settings": [],
        "clocks": {"before": clocks()} if device == "cuda" else {},
        "environment": environment(),
    }
    for setting in GPU if device == "cuda" else CPU:
        result["settings"].append(_measure(setting, torch.device(device), rounds, peer))
        if json is not None:
            write_result(json, result)
    if device == "cuda":
        result["clocks"]["after"] = clocks()
    return result


def _measure(setting: Setting, device: torch.device, rounds: int, peer: bool) -> dict[str, Any]:
    problem = problem_of(setting, device)
    providers = {**our_providers(problem), **torch_providers(problem)}
    skipped: dict[str, str] = {}
    if peer:
        reason = why_no_peer(setting)
        if reason is None:
            providers |= peer_providers(problem)
        else:
            skipped[PEER] = reason
    peaks = {name: _peak(call, device) for name, call in providers.items()}
    take_turns = device_interleaved if device.type == "cuda" else interleaved
    rows = {
        name: {**timing.as_dict(), "extra_mib": round(peaks[name] / MIB, 1)}
        for name, timing in take_turns(providers, rounds=rounds).items()
    }
    if device.type == "cuda":
        # The peer waits for the device; large logits would be held once more.
        large = setting.batch * setting.rows > PEER_PAIRS
        others = (PEER, "chunked torch") if large else (PEER,)
        graphs = {name: captured(call) for name, call in providers.items() if not name.startswith(others)}
        for name, timing in device_interleaved({n: g.replay for n, g in graphs.items()}, rounds=rounds).items():
            rows[name]["graph_ms"] = timing.as_dict()["median_ms"]
        del graphs
    del providers
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {**setting._asdict(), "providers": rows, "skipped": skipped}


def problem_of(setting: Setting, device: torch.device) -> Problem:
    """Return unit vectors with labels, the memory in its dtype, and a map that moves it a little."""
    source = torch.Generator(device).manual_seed(setting.batch + setting.rows)

    def vectors(n: int) -> Tensor:
        return functional.normalize(torch.randn(n, setting.width, device=device, generator=source), dim=1)

    classes = max(2, round(setting.rows / CLASSES))
    wanted = -(-setting.batch // 4)
    present = torch.randperm(max(classes, wanted), device=device, generator=source)[:wanted]
    dtype: torch.dtype = getattr(torch, setting.dtype)
    return Problem(
        vectors(setting.batch),
        present.repeat_interleave(4)[: setting.batch],
        vectors(setting.rows).to(dtype),
        torch.randint(classes, (setting.rows,), device=device, generator=source),
        (
            1 + 0.1 * torch.randn(setting.width, device=device, generator=source),
            0.01 * torch.randn(setting.width, device=device, generator=source),
        ),
    )


def our_providers(problem: Problem) -> dict[str, Call]:
    """Return every loss on the memory as it is, and some on the memory as moment matching sees it."""
    found: dict[str, Call] = {}
    for name, kind in PAIR_LOSSES.items():
        settings = {"temperature": TEMPERATURE} if "temperature" in kind.model_fields else {}
        step = partial(_our_step, problem, parse(kind, settings, name))
        found[name] = step()
        if name in VIEWS:
            found[f"{name}, moment matching"] = step(affine=problem.affine)
            found[f"{name}, moment matching, norms"] = step(affine=problem.affine, renormalise=True)
    return found


def _our_step(problem: Problem, loss: Any, **options: Any) -> Call:
    embeddings = problem.embeddings.detach().requires_grad_()

    def step() -> None:
        value = memory_loss(
            embeddings, problem.labels, problem.reference, problem.reference_labels, loss=loss, **options
        )
        value.backward()  # type: ignore[no-untyped-call]
        embeddings.grad = None

    return step


def torch_providers(problem: Problem) -> dict[str, Call]:
    """Return the supervised contrastive loss in chunks of the batch, as one writes it, eager and compiled."""
    on_gpu = problem.embeddings.is_cuda
    found: dict[str, Call] = {"chunked torch": _chunked(problem, chunk_loss, 1024 if on_gpu else 64)}
    if on_gpu or shutil.which("g++"):
        compiled = torch.compile(chunk_loss, dynamic=True)
        found["chunked torch, compiled"] = _chunked(problem, compiled, 1024 if on_gpu else 64)
    return found


def chunk_loss(embeddings: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor) -> Tensor:
    """Return the sum of the supervised contrastive losses of some anchors, logits and all."""
    logits = (embeddings.to(reference.dtype) @ reference.mT).float() / TEMPERATURE
    positive = labels[:, None] == reference_labels[None, :]
    count = positive.sum(1)
    mean = logits.where(positive, 0.0).sum(1) / count.clamp(min=1)
    return (logits.logsumexp(1) - mean).where(count > 0, 0.0).sum()


def _chunked(problem: Problem, loss: Callable[..., Tensor], size: int) -> Call:
    embeddings = problem.embeddings.detach().requires_grad_()

    def step() -> None:
        for start in range(0, len(embeddings), size):
            rows, labels = embeddings[start : start + size], problem.labels[start : start + size]
            value = loss(rows, labels, problem.reference, problem.reference_labels) / len(embeddings)
            value.backward()  # type: ignore[no-untyped-call]
        embeddings.grad = None

    return step


def why_no_peer(setting: Setting) -> str | None:
    """Return why pytorch-metric-learning is not timed, or None."""
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        return "not installed: pip install pytorch-metric-learning==2.9.0"
    if setting.batch * setting.rows > PEER_PAIRS:
        return f"its lists of {setting.batch * setting.rows:,} pairs do not fit"
    return None


def peer_providers(problem: Problem) -> dict[str, Call]:
    """Return pytorch-metric-learning's memory with two of its losses, the memory full."""
    distances = importlib.import_module("pytorch_metric_learning.distances")
    losses = importlib.import_module("pytorch_metric_learning.losses")

    def step(loss: Any) -> Call:
        memory = losses.CrossBatchMemory(loss, problem.embeddings.shape[1], len(problem.reference))
        memory.embedding_memory = problem.reference.float()
        memory.label_memory = problem.reference_labels.clone()
        memory.has_been_filled = True
        embeddings = problem.embeddings.detach().requires_grad_()

        def once() -> None:
            memory(embeddings, problem.labels).backward()
            embeddings.grad = None

        return once

    cosine = distances.CosineSimilarity()
    return {
        f"{PEER}, contrastive": step(losses.ContrastiveLoss(1.0, 0.5, distance=cosine)),
        f"{PEER}, supervised contrastive": step(losses.SupConLoss(TEMPERATURE)),
    }


def _peak(call: Call, device: torch.device) -> int:
    """Return the bytes that a call holds at most beyond what is there before it; the first call compiles."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
