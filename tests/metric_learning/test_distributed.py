"""Several ranks train as one: the same gradients, the same memory, the same errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from longview.errors import InputError, LongviewError
from longview.metric_learning import CrossBatchLoss, PairwiseLoss
from longview.ops.collectives import gather_rows, row_counts
from tests.metric_learning.helpers import WIDTH, drifting, memory

CASES = [
    (mode, loss, anchor)
    for mode in ("replicated", "sharded")
    for loss, anchor in (
        ("contrastive", "state"),
        ("info-nce", "batch"),
        ("contrastive", "memory"),
        ("contrastive mean_active", "state"),
        ("triplet mean_active", "batch"),
    )
]


def batches() -> list[Any]:
    """Seven batches of eight rows and a last one of five."""
    stream = drifting(8)
    stream[-1] = tuple(column[:5] for column in stream[-1])
    return stream


def share(batch: Any, world: int, rank: int) -> Any:
    """Return this rank's rows: as equal as they come, the first ranks first; five rows leave a fourth rank none."""
    size = -(-len(batch[0]) // world)
    return tuple(column[rank * size : (rank + 1) * size] for column in batch)


def train(mode: str, loss_name: str, anchor: str, world: int, rank: int) -> tuple[torch.Tensor, CrossBatchLoss, float]:
    """Train a linear encoder with gradients averaged over the ranks."""
    torch.manual_seed(0)
    encoder = torch.nn.Linear(WIDTH, WIDTH, bias=False).double()
    bank = memory({"kind": "axbn", "anchor": anchor}, capacity=20, distributed=mode, check_every=2, renormalise=True)
    kind, _, reduction = loss_name.partition(" ")
    loss = CrossBatchLoss(PairwiseLoss(kind, reduction=reduction or "mean_per_anchor"), bank)  # type: ignore[arg-type]
    for batch in batches():
        x, labels, ids = share(batch, world, rank)
        value = loss(encoder(x), labels, ids)
        encoder.weight.grad = None
        value.backward()
        gradient, mean = encoder.weight.grad, value.detach().clone()
        if world > 1:
            dist.all_reduce(gradient)
            dist.all_reduce(mean)
        with torch.no_grad():
            encoder.weight -= 0.5 * gradient / world
    return encoder.weight.detach(), loss, float(mean) / world


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", world_size=world, rank=rank)
    found: dict[str, Any] = {"trained": [], "refused": [], "rows": []}
    for case in CASES:
        weight, loss, value = train(*case, world, rank)
        rows = loss.memory.read().sample_ids
        found["trained"].append((weight, value))
        found["rows"].append(gather_rows(rows, row_counts(len(rows), rows.device)) if case[0] == "sharded" else rows)

    local = memory({"kind": "axbn"})
    x, labels, ids = share(drifting(1)[0], world, rank)
    local(x, labels, ids)
    found["local"] = local.drift_moments

    bank = memory({"kind": "axbn"}, distributed="replicated")
    bank(x, labels, ids)
    try:
        bank(x * (float("nan") if rank == world - 1 else 1), labels, ids)
    except InputError as error:
        found["refused"].append(str(error))
    bank.check_replicas()
    bank.drift_moments[0, 0] += rank
    try:
        bank.check_replicas()
    except LongviewError as error:
        found["refused"].append(str(error))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_are_one_process(world: int, tmp_path: Path) -> None:
    multiprocessing.spawn(work, (world, str(tmp_path)), nprocs=world)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for place, case in enumerate(CASES):
        weight, loss, value = train(*case, 1, 0)
        for ours in found:
            torch.testing.assert_close(ours["trained"][place][0], weight, rtol=1e-9, atol=1e-11)
            assert ours["trained"][place][1] == pytest.approx(value, rel=1e-9)
        rows = loss.memory.read().sample_ids
        assert sorted(found[0]["rows"][place].tolist()) == sorted(rows.tolist())
        if case[0] == "replicated":
            assert all(torch.equal(ours["rows"][place], rows) for ours in found)
    batch = drifting(1)[0][0]
    for ours in found:
        torch.testing.assert_close(ours["local"], torch.stack([batch.mean(0), batch.std(0, correction=0)]))
        assert "NaN or infinite in" in ours["refused"][0]  # on every rank, so that none waits for another
        assert "differs from rank 0" in ours["refused"][1]


def test_one_process_needs_no_group() -> None:
    for case in CASES:
        weight, loss, _ = train(*case, 1, 0)
        assert torch.isfinite(weight).all()
        loss.memory.check_replicas()


def test_a_capacity_that_does_not_divide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longview.metric_learning.memory.ranks", lambda: (3, 0))
    with pytest.raises(InputError, match="make it a multiple of 3"):
        memory(distributed="sharded")
