"""Two processes train on images as one: the same weights and memory, exact resume, one voice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from longview.data.images import ImageSet
from longview.errors import InputError
from longview.ops.collectives import ranks
from longview.training.batch_norm import over_all_ranks
from longview.training.images import ImageRunConfig, resolve_image_config, train_images
from longview.training.images.trainer import ImageTrainer
from longview.training.images.views import TrainingBatches, Views, framing_of
from longview.training.running import InterruptedRunError
from tests.image_classes import SETTINGS
from tests.training.images.test_run import checkpoint_tensors
from tests.training.test_distributed import asked_on_one_rank

pytestmark = pytest.mark.filterwarnings("ignore::longview.metric_learning.MemoryWarning")  # tiny batches

SHARED = ("sampler.classes_per_batch=4", "data.augment.shift=0.1", "optimiser.clip_norm=0.5")
CASES = (
    (),
    ("loss.reduction=mean_per_anchor", "memory.momentum=0.9"),
    ("memory=null", "loss.kind=multi-similarity"),
    ("memory=null", "loss.kind=proxy-anchor"),
)
RESUMED = ("evaluation.drift_every=2", "optimiser.average_decay=0.9", "data.augment.erase=0.5", "loop.epochs=3")


def configured(*overrides: str) -> ImageRunConfig:
    return resolve_image_config("image-small", [*SETTINGS, *SHARED, *overrides])


def steps(images: ImageSet, overrides: tuple[str, ...]) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Return loss and gradient norm of some steps, and encoder and loss after them."""
    torch.manual_seed(0)
    config = configured(*overrides)
    encoder = config.encoder.build()
    framing, device = framing_of(config, encoder, images), torch.device("cpu")
    batches = TrainingBatches(Views.of(images, config.data).train, config, framing, device)
    trainer = ImageTrainer(config, encoder, batches, device=device)
    trainer.optimiser = torch.optim.SGD(  # AdamW makes a step of 1 of any difference, at first
        [{"params": group["params"], "multiplier": 1.0} for group in trainer.optimiser.param_groups], lr=0.1
    )
    found = [trainer.step(batch, number) for number, batch in enumerate(batches.epoch(0))]
    return found, trainer.trained.state_dict()


def normalised() -> tuple[torch.Tensor, ...]:
    """Return output, gradients and statistics of a batch norm in float64, of this rank's rows of six: four and two."""
    model = nn.Sequential(nn.BatchNorm2d(3)).double()
    over_all_ranks(model)
    x = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 5
    world, rank = ranks()
    rows = slice(None) if world == 1 else slice(4 * rank, 4 + 2 * rank)
    here = x[rows].clone().requires_grad_()
    out = model(here)
    (out * x[rows].sin()).sum().backward()
    weight = model[0].weight.grad.clone()
    if world > 1:
        dist.all_reduce(weight)
    return out.detach(), here.grad, weight, model[0].running_mean, model[0].running_var


def work(rank: int, folder: str, data: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", world_size=2, rank=rank)
    import longview.training.running as running

    out, images = Path(folder), ImageSet.open(Path(data))
    found: dict[str, Any] = {"steps": [steps(images, case) for case in CASES], "normalised": normalised()}
    found["straight"] = train_images(configured(*RESUMED), images, out / "straight").to_dict()
    before, running.stop_requests = running.stop_requests, asked_on_one_rank
    try:
        train_images(configured(*RESUMED), images, out / "halves")
    except InterruptedRunError as error:
        found["stopped"] = str(error)
    running.stop_requests = before
    found["halves"] = train_images(configured(*RESUMED), images, out / "halves", resume=True).to_dict()
    try:
        train_images(configured("sampler.classes_per_batch=3"), images, out / "odd")
    except InputError as error:
        found["odd"] = str(error)
    torch.save(found, out / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, image_set: ImageSet) -> tuple[Path, list[dict[str, Any]]]:
    """Return the folder of the runs of two processes, and what each found."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(work, (str(folder), str(image_set.path)), nprocs=2)
    return folder, [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("place", range(len(CASES)), ids=lambda place: " ".join(CASES[place]) or "default")
def test_steps_are_those_of_one_process(
    ran: tuple[Path, list[dict[str, Any]]], image_set: ImageSet, place: int
) -> None:
    losses, weights = steps(image_set, CASES[place])
    assert len(losses) > 3
    for found in ran[1]:
        ours, state = found["steps"][place]
        torch.testing.assert_close(ours, losses, rtol=1e-4, atol=1e-6)
        assert state.keys() == weights.keys()
        for name, value in weights.items():
            torch.testing.assert_close(
                state[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )
    one, other = (found["steps"][place][1] for found in ran[1])
    assert not [name for name in one if not torch.equal(one[name], other[name])], "processes hold the same, bit for bit"


def test_batch_normalisation_is_over_the_batch_of_all(ran: tuple[Path, list[dict[str, Any]]]) -> None:
    out, gradient, weight, *statistics = normalised()
    ours = [found["normalised"] for found in ran[1]]
    torch.testing.assert_close(torch.cat([one[0] for one in ours]), out)
    torch.testing.assert_close(torch.cat([one[1] for one in ours]), gradient)
    for one in ours:
        torch.testing.assert_close(list(one[2:]), [weight, *statistics])


def test_a_signal_to_one_process_stops_all_and_the_run_resumes_bit_for_bit(
    ran: tuple[Path, list[dict[str, Any]]],
) -> None:
    straight, halves = (checkpoint_tensors(ran[0] / name) for name in ("straight", "halves"))
    assert straight.keys() == halves.keys()
    assert not [name for name in straight if not torch.equal(straight[name], halves[name])]
    assert {"rank-1.random.cpu", "loss.memory.queue.rows"} <= straight.keys()
    for found in ran[1]:
        assert "the checkpoint is in" in found["stopped"]
        assert found["halves"]["test"] == found["straight"]["test"]
        assert found["halves"]["drift"] == found["straight"]["drift"]
        assert "trained on 2 processes, each on its share of every batch" in found["straight"]["notes"]
    lines = [json.loads(line) for line in (ran[0] / "straight" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == [1, 2, 3], "one process logs"
    assert (ran[0] / "straight" / "card.md").exists()


def test_what_cannot_be_is_refused_by_name(ran: tuple[Path, list[dict[str, Any]]], image_set: ImageSet) -> None:
    assert all("classes_per_batch=3 does not divide among 2 ranks" in found["odd"] for found in ran[1])
    assert not (ran[0] / "odd").exists()
    with pytest.raises(InputError, match=r"on 2 processes, and there is 1 now.*torchrun --nproc-per-node 2"):
        train_images(configured(*RESUMED), image_set, ran[0] / "straight", resume=True)


def test_torchrun_starts_them_and_one_speaks(image_set: ImageSet, tmp_path: Path) -> None:
    settings = [word for setting in (*SETTINGS, *SHARED, "loop.epochs=1") for word in ("--set", setting)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "longview", "train", str(image_set.path), "--out", str(tmp_path / "run")]
    done = subprocess.run([*command, "--json", *settings], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "trained on 2 processes, each on its share of every batch" in json.loads(done.stdout)["notes"]
