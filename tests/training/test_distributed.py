"""Two processes train as one: the same gradients and weights, exact resume, one voice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import multiprocessing

from longview.data.batches import TrainingBatches
from longview.data.dataset import PreparedData
from longview.data.share import Share
from longview.errors import InputError, LongviewError
from longview.ops.collectives import ranks
from longview.training import train
from longview.training.checkpoint import latest_checkpoint
from longview.training.config import RunConfig, resolve_config
from longview.training.distributed import check_processes, is_main, on_main, share, speaks, sum_gradients, total
from longview.training.running import InterruptedRunError
from longview.training.trainer import Trainer
from tests.training.conftest import TINY

EXACT = ("model.dropout=0", "model.embedding.dropout=0", "batches.batch_size=13", "optimiser.clip_norm=0.5")
RANDOM = (
    "loss.kind=sampled",
    "loss.num_negatives=8",
    "optimiser.average_decay=0.9",
    "batches.stochastic_length.balance=load",
    "batches.stochastic_length.interval=3",
    "batches.stochastic_length.alpha=1.3",
)
UNEVEN = 59  # users whose batches of two leave one sequence, and so one process without any
CPU = torch.device("cpu")


def configured(*overrides: str) -> RunConfig:
    return resolve_config("hstu-small", [*TINY, *overrides])


def gradients(data: PreparedData, part: Share) -> list[Any]:
    """Return the loss and gradients of some batches, the last of which is one sequence."""
    torch.manual_seed(0)
    config = configured(*EXACT)
    trainer = Trainer(config, data, device=CPU, steps_per_epoch=4)
    batches = TrainingBatches(data, max_length=8, batch_size=2, share=part)
    batches._start, batches._end = batches._start[:UNEVEN], batches._end[:UNEVEN]
    found = []
    for batch in list(batches.epoch(0))[-3:]:
        trainer.optimiser.zero_grad(set_to_none=True)
        loss = sum_gradients(trainer.model, *trainer._backward(batch))
        found.append([loss, {name: p.grad for name, p in trainer.model.named_parameters()}])
    return found


def refusals() -> list[str]:
    def fails() -> None:
        raise InputError(f"only rank 0 of {ranks()[0]} saw it")

    def refused(call: Callable[[], object]) -> str:
        try:
            call()
        except LongviewError as error:
            return str(error)
        return "nothing was refused"

    return [
        refused(lambda: check_processes(configured("task=ranking"))),
        refused(lambda: check_processes(configured("optimiser.tables=rowwise", "loss.kind=sampled"))),
        refused(lambda: on_main(fails)),
    ]


@contextmanager
def asked_on_one_rank() -> Iterator[Callable[[], bool]]:
    """Stand in for `stop_requests`: rank 1 alone gets a signal, after six steps."""
    steps = iter(range(100))
    yield lambda: next(steps) == 5 and not is_main()


def work(rank: int, world: int, folder: str, data_path: str) -> None:
    torch.set_num_threads(1)
    out, data = Path(folder), PreparedData.open(Path(data_path))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", world_size=world, rank=rank)
    import longview.evaluation.card as card
    import longview.training.running as running

    card.draw_curves = lambda *_: False
    found: dict[str, Any] = {"gradients": gradients(data, share()), "refused": refusals(), "total": total(rank + 1)}
    found["exact"] = train(configured(*EXACT), data, out / "exact").to_dict()["test"]["metrics"]
    train(configured(*RANDOM), data, out / "straight")
    before, running.stop_requests = running.stop_requests, asked_on_one_rank
    try:
        train(configured(*RANDOM), data, out / "halves")
    except InterruptedRunError as error:
        found["stopped"] = str(error)
    running.stop_requests = before
    train(configured(*RANDOM), data, out / "halves", resume=True)
    found["speaks"] = speaks()
    torch.save(found, out / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny: PreparedData) -> tuple[Path, list[dict[str, Any]]]:
    """Return the folder of the runs of two processes, and what each found."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(work, (2, str(folder), str(tiny.path)), nprocs=2)
    return folder, [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]


def checkpoint(out: Path) -> dict[str, torch.Tensor]:
    path = latest_checkpoint(out / "checkpoint")
    assert path is not None
    return load_file(path.with_suffix(".safetensors"))


def test_gradients_are_those_of_one_process_on_the_whole_batch(
    ran: tuple[Path, list[dict[str, Any]]], tiny: PreparedData
) -> None:
    for alone, *ours in zip(gradients(tiny, Share()), *(found["gradients"] for found in ran[1]), strict=True):
        for loss, gradient in ours:
            torch.testing.assert_close(loss, alone[0])
            for name, value in alone[1].items():
                assert (value is None) == (gradient[name] is None), name
                torch.testing.assert_close(gradient[name], value, rtol=1e-4, atol=1e-7)


def test_a_run_of_two_processes_is_a_run_of_one(
    ran: tuple[Path, list[dict[str, Any]]], tiny: PreparedData, tmp_path: Path
) -> None:
    alone = train(configured(*EXACT), tiny, tmp_path / "alone")
    ours, theirs = (
        load_file(ran[0] / "exact" / "model.safetensors"),
        load_file(tmp_path / "alone" / "model.safetensors"),
    )
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
    for found in ran[1]:
        assert found["exact"]["ndcg@10"] == pytest.approx(alone.test.metrics["ndcg@10"], abs=0.02)
    logged = [json.loads(line) for line in (ran[0] / "exact" / "log.jsonl").read_text().splitlines()]
    epochs = [record for record in logged if record["event"] == "epoch"]
    assert [record["epoch"] for record in epochs] == [1, 2], "one process logs"
    assert [e["loss"] for e in epochs] == [pytest.approx(e["loss"], rel=1e-4) for e in alone.state.epochs]


def test_a_run_resumes_bit_for_bit_with_the_random_states_of_all(ran: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in ran[1]:
        assert "epoch 2, step 2" in found["stopped"], "one process saw the signal, and all stopped at the same step"
    straight, halves = checkpoint(ran[0] / "straight"), checkpoint(ran[0] / "halves")
    assert straight.keys() == halves.keys()
    assert not [name for name in straight if not torch.equal(straight[name], halves[name])]
    assert {"batches.load", "rank-1.batches.load", "rank-1.random.cpu", "rank-1.objective.generator"} <= set(straight)
    assert not torch.equal(straight["random.cpu"], straight["rank-1.random.cpu"]), "dropout differs between shares"


def test_another_number_of_processes_cannot_resume(ran: tuple[Path, list[dict[str, Any]]], tiny: PreparedData) -> None:
    with pytest.raises(InputError, match=r"on 2 processes, and there is 1 now.*torchrun --nproc-per-node 2"):
        train(configured(*RANDOM), tiny, ran[0] / "straight", resume=True)


def test_what_is_refused_is_refused_on_all(ran: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in ran[1]:
        ranking, rowwise, main = found["refused"]
        assert "task ranking trains on one process" in ranking
        assert "optimiser.tables rowwise" in rowwise
        assert main == "only rank 0 of 2 saw it"
        assert found["total"] == 3
    assert [found["speaks"] for found in ran[1]] == [True, False]


def test_torchrun_starts_them_and_one_speaks(tiny: PreparedData, tmp_path: Path) -> None:
    settings = [word for setting in (*TINY, "loop.epochs=1") for word in ("--set", setting)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "longview", "train", str(tiny.path), "--out", str(tmp_path / "run"), "--no-baselines"]
    done = subprocess.run([*command, "--json", *settings], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "trained on 2 processes, each on its share of every batch" in json.loads(done.stdout)["notes"]


def test_one_process_balances_its_own_steps_and_resumes(tiny: PreparedData, tmp_path: Path) -> None:
    train(configured(*RANDOM), tiny, tmp_path / "straight")
    train(configured(*RANDOM, "loop.max_minutes=1e-9"), tiny, tmp_path / "halves")  # stops after one epoch
    train(configured(*RANDOM), tiny, tmp_path / "halves", resume=True)
    straight, halves = checkpoint(tmp_path / "straight"), checkpoint(tmp_path / "halves")
    assert not [name for name in straight if not torch.equal(straight[name], halves[name])]
    assert straight["batches.load"].isfinite().all(), "there is a load to aim at"


def test_one_process_is_what_it_was(tiny: PreparedData) -> None:
    loss = torch.tensor(2.0)
    assert sum_gradients(torch.nn.Linear(2, 2), loss, 5) is loss
    assert on_main(lambda: "seen") == "seen"
    assert share() == Share(0, 1, total)
