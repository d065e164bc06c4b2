"""Run every kernel family once under NVIDIA's compute-sanitizer, on a machine with a GPU.

    python -m tests.ops.sanitize FILE.json      # memory and race checks of every family, the result as JSON
    python -m tests.ops.sanitize --run FAMILY   # what is checked: one run of small, odd shapes

torch's allocator is told not to pool memory, so that a read one element beyond a tensor is seen.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from longview.ops.attention import MaskSpec, newest_rows_attention, semi_local_attention
from longview.ops.softmax_loss import full_softmax_loss, sampled_softmax_loss

TOOLS = ("memcheck", "racecheck")
LIMIT = 120  # seconds of one check


def attention() -> None:
    """Forward and backward of each kind of mask over lengths around the blocks, and the newest rows alone."""
    lengths = torch.tensor([0, 1, 63, 64, 65, 200])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).cuda()
    targets = torch.tensor([0, 0, 3, 1, 0, 70]).cuda()
    q, k, v = (_normal(int(offsets[-1]), 2, 64) for _ in range(3))
    for mask in (MaskSpec.causal(), MaskSpec.ultra_prefix(70, 40), MaskSpec.ultra(70, 40)):
        out = semi_local_attention(q, k, v, offsets, mask, scale_length=9.0, target_lengths=targets, backend="triton")
        out.backward(torch.randn_like(out))
    asked = torch.tensor([0, 0, 1, 4, 4, 9, 29]).cuda()
    newest_rows_attention(q[:29].detach(), k, v, asked, offsets, MaskSpec.causal(), scale_length=9.0)


def layer() -> None:
    """A whole HSTU layer, forward and backward, with dropout and recomputation."""
    from longview.models.hstu import HSTULayer, Layout
    from longview.models.layer_config import AttentionConfig, LayerConfig

    made = HSTULayer(64, 2, 200, 0.3, LayerConfig(recompute="all"), AttentionConfig(local_window=70, global_size=40))
    x = _normal(130, 64)
    with torch.autocast("cuda", torch.bfloat16):
        out = made.cuda().train()(x, Layout(torch.tensor([0, 57, 130]).cuda(), 73))
    out.sum().backward()


def loss() -> None:
    """Full and sampled softmax, forward and backward."""
    queries, items = _normal(70, 64), _normal(333, 64)
    targets = torch.randint(333, (70,)).cuda()
    full_softmax_loss(queries, items, targets, path="triton").backward()
    negatives = torch.randint(333, (4, 50)).cuda()
    sampled_softmax_loss(queries, items, targets, negatives, path="triton").backward()


def embedding() -> None:
    """Gradients summed by id, with and without a row-wise optimiser."""
    from longview.ops.embedding import RowwiseAdagrad, embedding_lookup

    table = torch.randn(50, 64, device="cuda", requires_grad=True)
    ids = torch.randint(50, (300,)).cuda() % 7
    embedding_lookup(table, ids).sum().backward()
    RowwiseAdagrad(table).step(ids, torch.randn(300, 64, device="cuda"))


def memory() -> None:
    """Two steps of losses against a memory that follows the drift: the walks, their ends and the filter."""
    from longview.metric_learning import CrossBatchLoss, MemoryConfig
    from longview.metric_learning.kalman import AdaptiveMomentMatching
    from longview.ops.memory_loss import PAIR_LOSSES

    config = MemoryConfig(capacity=301, width=100, drift=AdaptiveMomentMatching(), storage="bfloat16")
    for name in PAIR_LOSSES:
        against = CrossBatchLoss(name, config).cuda()
        for step in range(3):
            ids = torch.arange(45 * step, 45 * (step + 1)).cuda()
            against(torch.randn(45, 100, device="cuda", requires_grad=True), ids % 7, ids).backward()
    _memory_by_norms(100)
    _memory_by_norms(512)


def _memory_by_norms(width: int) -> None:
    """Losses against rows that are mapped and divided by their norms: held piece by piece, or wide ones as stored."""
    from longview.ops.memory_loss import PAIR_LOSSES, memory_loss, prepared

    prepared.SEEN_BYTES = 64 * width * 2
    prepared.prepared_for.cache_clear()
    rows, labels = torch.randn(301, width, device="cuda").bfloat16(), torch.arange(301).cuda() % 7
    affine = torch.rand(width, device="cuda"), torch.rand(width, device="cuda")
    for kind in PAIR_LOSSES.values():
        anchors = torch.randn(45, width, device="cuda", requires_grad=True)
        given = anchors, labels[:45], rows, labels
        memory_loss(*given, loss=kind(), affine=affine, renormalise=True, backend="triton").backward()


def quantisation() -> None:
    """FP8 rows, norm, gate and product with its residual, and lookups and sums in INT8 and INT4 tables."""
    from longview.ops.quantisation import QuantisedTable, fp8_linear, gate_quantise, normalise_quantise, quantise_rows

    rows, weight = torch.randn(130, 128, device="cuda"), torch.randn(256, 128, device="cuda")
    ones = torch.ones(128, device="cuda")
    w, w_scale = quantise_rows(weight)
    normed = normalise_quantise(rows, ones, ones, 1e-6)
    gated = gate_quantise(rows, rows, ones[:64], ones[:64], groups=2)
    for x, x_scale in (quantise_rows(rows)[:2], normed[:2], gated[:2]):
        fp8_linear(x, x_scale, w, w_scale, residual=_normal(130, 256).detach())
    for bits in (8, 4):
        table, ids = QuantisedTable.from_table(torch.randn(50, 100), bits=bits).cuda(), torch.randint(-1, 51, (300,))
        table.lookup(ids.cuda())
        table.scores(rows[:3, :100].contiguous(), ids.view(3, 100).cuda())
        table.pooled(ids.cuda(), torch.tensor([0, 0, 7, 299, 400]).cuda(), torch.ones(300).cuda())


def scoring() -> None:
    """Events appended to states, and candidates scored against them, by the kernels of the incremental form."""
    from longview.models.incremental import Incremental
    from tests.models.histories import WINDOW, build, histories, together

    model = build(double=False, attention=WINDOW, embedding={"positions": "start", "time_gaps": "previous"}).cuda()
    for parameter in model.parameters():
        parameter.data.mul_(0.3)
    incremental = Incremental(model)
    state = incremental.prefill(together(histories([23, 1, 40, 7])).to("cuda"))
    state = incremental.append(state, together(histories([2, 5, 1, 3], seed=3)).to("cuda"))
    incremental.candidates(state, together(histories([3, 0, 9, 70], seed=5)).to("cuda"))


FAMILIES = {
    "attention": attention,
    "layer": layer,
    "loss": loss,
    "embedding": embedding,
    "memory": memory,
    "quantisation": quantisation,
    "scoring": scoring,
}


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).requires_grad_()


def check(family: str, tool: str) -> dict[str, Any]:
    """Return what `tool` says of a run of `family`."""
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    command = [sanitizer, "--tool", tool, "--target-processes", "all", sys.executable, "-m", "tests.ops.sanitize"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            [*command, "--run", family], env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
        )
        text = done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        text = f"not done after {LIMIT} s"
    found = re.findall(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", text)
    problems = [int(a or b) for a, b in found]
    return {
        "family": family,
        "tool": tool,
        "ran": f"{family} done" in text,
        "problems": sum(problems) if problems else None,
        "says": [line for line in text.splitlines() if "SUMMARY" in line or "Error" in line][:6],
    }


def main(words: list[str]) -> None:
    from longview.bench.device import require_gpu
    from longview.evaluation.environment import environment
    from longview.files import write_json

    require_gpu("sanitize")
    if words[0] == "--run":
        FAMILIES[words[1]]()
        torch.cuda.synchronize()
        print(f"{words[1]} done")  # noqa: T201
        return
    for family in FAMILIES.values():  # compiled now, so that the compiler is not what is checked
        family()
    checks = [(family, tool) for family in FAMILIES for tool in TOOLS]
    with ThreadPoolExecutor(len(checks)) as pool:
        rows = list(pool.map(lambda one: check(*one), checks))
    command = f"python -m tests.ops.sanitize results/{Path(words[0]).name}"
    result = {"check": "compute-sanitizer", "command": command, "runs": rows, "environment": environment()}
    write_json(Path(words[0]), result)


if __name__ == "__main__":
    main(sys.argv[1:])
