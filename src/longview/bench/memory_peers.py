"""What one would write instead of `ops.memory_loss`: chunks of plain torch, and pytorch-metric-learning."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from longview.bench.memory_problem import Problem, Setting
from longview.config import parse
from longview.ops.memory_loss import (
    PAIR_LOSSES,
    CircleLoss,
    ContrastiveLoss,
    InfoNCELoss,
    MultiSimilarityLoss,
    PairLoss,
    TripletLoss,
)

Call = Callable[[], object]
TEMPERATURE = 0.1
PEER = "pytorch-metric-learning"
PEER_PAIRS = 1 << 29  # entries of b × m up to which the peer's lists of pairs are tried
CHUNK, CHUNK_ON_GPU = 64, 1024  # anchors whose logits are held at once


def bench_loss(name: str) -> PairLoss:
    """Return the loss of that name with the settings it is timed with."""
    kind = PAIR_LOSSES[name]
    loss: PairLoss = parse(kind, {"temperature": TEMPERATURE} if "temperature" in kind.model_fields else {}, name)
    return loss


def torch_providers(problem: Problem) -> dict[str, Call]:
    """Return the supervised contrastive loss in chunks of the batch, as one writes it, eager and compiled.

    On a CPU also every other loss in chunks, compiled.
    """
    on_gpu = problem.embeddings.is_cuda
    size = CHUNK_ON_GPU if on_gpu else CHUNK
    found: dict[str, Call] = {"chunked torch": _chunked(problem, chunk_loss, size)}
    if on_gpu or shutil.which("g++"):
        torch.compiler.reset()  # what another setting compiled counts towards how often one function may be
        found["chunked torch, compiled"] = _chunked(problem, torch.compile(chunk_loss, dynamic=True), size)
        for name in () if on_gpu else PAIR_LOSSES:
            if name != "supervised-contrastive":
                compiled = torch.compile(chunk_of(bench_loss(name)), dynamic=True)
                found[f"compiled {name}"] = _chunked(problem, compiled, size)
    return found


def chunk_of(loss: PairLoss) -> Callable[..., Tensor]:
    """Return what gives the sum of the losses of some anchors, as one writes it with all similarities at hand."""

    def chunk(embeddings: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor) -> Tensor:
        """Return the sum of the losses of anchors (b, d) against a memory (m, d), a scalar."""
        s = (embeddings.to(reference.dtype) @ reference.mT).float()
        positive = labels[:, None] == reference_labels[None, :]
        if isinstance(loss, ContrastiveLoss):
            pull, push = (loss.positive_margin - s).clamp(min=0), (s - loss.negative_margin).clamp(min=0)
            return torch.where(positive, pull, push).sum()
        if isinstance(loss, TripletLoss):  # hardest and semi-hard, minus infinity where one lacks
            s_p = _without(~positive, -s).max(1, keepdim=True).values.neg()
            s_n = _without(positive | (s >= s_p), s).max(1, keepdim=True).values
            return (s_n - s_p + loss.margin).clamp(min=0).sum()
        if isinstance(loss, InfoNCELoss):
            logits = s / loss.temperature
            apart = functional.softplus(_without(positive, logits).logsumexp(1, keepdim=True) - logits)
            return (apart.where(positive, 0.0).sum(1) / positive.sum(1).clamp(min=1)).sum()
        if isinstance(loss, MultiSimilarityLoss):
            pulled = _without(~positive, -loss.alpha * (s - loss.base)).logsumexp(1)
            pushed = _without(positive, loss.beta * (s - loss.base)).logsumexp(1)
            return (functional.softplus(pulled) / loss.alpha + functional.softplus(pushed) / loss.beta).sum()
        assert isinstance(loss, CircleLoss)
        own, other = (1 + loss.margin - s.detach()).clamp(min=0), (s.detach() + loss.margin).clamp(min=0)
        pulled = _without(~positive, -loss.gamma * own * (s - 1 + loss.margin)).logsumexp(1)
        pushed = _without(positive, loss.gamma * other * (s - loss.margin)).logsumexp(1)
        return functional.softplus(pulled + pushed).sum()

    return chunk


def _without(pairs: Tensor, values: Tensor) -> Tensor:
    return values.masked_fill(pairs, -torch.inf)


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
