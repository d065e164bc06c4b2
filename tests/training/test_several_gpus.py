"""Two GPUs train as one: the losses and weights of one, and a run that stops and resumes is the run that did not.

    python -m tests.training.test_several_gpus results/gpu-processes.json data/ml-1m data/omniglot

measures the same on prepared data and writes it down, seconds included.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import multiprocessing

from longview.data.dataset import PreparedData
from longview.data.images import ImageSet
from longview.training import resolve_config, train
from longview.training.checkpoint import latest_checkpoint
from longview.training.distributed import process_group
from longview.training.images import resolve_image_config, train_images
from longview.training.images.result import ImageTrainingResult
from longview.training.result import TrainingResult
from longview.training.running import InterruptedRunError
from tests.image_classes import SETTINGS
from tests.training.conftest import TINY
from tests.training.test_distributed import asked_on_one_rank

SAME = 1e-2  # how far weights may lie apart, over how far they are from zero: sums in another order, in TF32
TASKS = ("logs", "images")
SMALL = {  # of what the tests make
    "logs": ("hstu-small", *TINY, "model.dropout=0", "model.embedding.dropout=0", "batches.batch_size=16"),
    "images": ("image-small", *SETTINGS, "sampler.classes_per_batch=4", "loss.kind=multi-similarity"),
}
REAL = {  # of data sets: what a preset has, less what is random or long
    "logs": ("hstu-small", "model.dropout=0", "model.embedding.dropout=0", "loop.epochs=1"),
    "images": ("image-small", "data.turned_classes=false", "loop.epochs=1", "evaluation.resamples=0",
               "evaluation.gallery_queries=0", "evaluation.drift_every=0"),
}  # fmt: skip


def run(task: str, settings: Sequence[str], data: str, out: Path, resume: bool = False) -> dict[str, Any]:
    """Train, and return the losses of the epochs, the metrics of the test, the notes and the seconds."""
    preset, *overrides = settings
    begin = time.perf_counter()
    result: TrainingResult | ImageTrainingResult
    if task == "logs":
        source = PreparedData.open(Path(data))
        result = train(resolve_config(preset, overrides), source, out, device="cuda", resume=resume)
    else:
        images = ImageSet.open(Path(data))
        result = train_images(resolve_image_config(preset, overrides), images, out, device="cuda", resume=resume)
    return {
        "losses": [epoch["loss"] for epoch in result.state.epochs],
        "metrics": dict(result.metrics),
        "notes": list(result.notes),
        "seconds": time.perf_counter() - begin,
    }


def work(rank: int, world: int, port: int, folder: str, sources: dict[str, str], kinds: Any) -> None:
    """Be one of `world` processes; with several, also stop in the middle and go on."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    import longview.training.running as running

    out, found = Path(folder), dict[str, Any]()
    with process_group(torch.device("cuda")):
        for task, settings in kinds.items():
            found[task] = run(task, settings, sources[task], out / f"{task}-{world}")
            if world == 1:
                continue
            before, running.stop_requests = running.stop_requests, asked_on_one_rank
            try:
                run(task, settings, sources[task], out / f"{task}-halves")
            except InterruptedRunError as error:
                found[task]["stopped"] = str(error)
            running.stop_requests = before
            found[task]["halves"] = run(task, settings, sources[task], out / f"{task}-halves", resume=True)
    torch.save(found, out / f"rank-{rank}-of-{world}.pt")


def spawn(world: int, folder: Path, sources: dict[str, str], kinds: Any) -> list[dict[str, Any]]:
    """Return what each of `world` processes found."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (world, port, str(folder), sources, kinds), nprocs=world)
    return [torch.load(folder / f"rank-{rank}-of-{world}.pt", weights_only=False) for rank in range(world)]


def weights(folder: Path) -> torch.Tensor:
    """Return all floating-point weights of the last checkpoint of a run as one vector, with the moments of its memory.

    Without the memory's rows: where steps are captured as graphs those of the last batch are in, elsewhere they wait.
    """
    path = latest_checkpoint(folder / "checkpoint")
    assert path is not None
    tensors = load_file(path.with_suffix(".safetensors"))
    kept = ("model.", "encoder.", "loss.")
    return torch.cat([
        value.double().flatten() for name, value in sorted(tensors.items())
        if name.startswith(kept) and ".queue." not in name and value.is_floating_point()
    ])  # fmt: skip


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return how far two vectors are apart, over the length of the second."""
    return float((one - other).norm() / other.norm())


def compare(folder: Path, sources: dict[str, str], kinds: Any) -> dict[str, Any]:
    """Train on one GPU and on two, and return what came out and how far it is apart, by task."""
    found = {}
    alone, both = spawn(1, folder, sources, kinds)[0], spawn(2, folder, sources, kinds)
    for task in kinds:
        one, two, halves = (weights(folder / f"{task}-{kind}") for kind in ("1", "2", "halves"))
        found[task] = {
            "settings": list(kinds[task]),
            "one": alone[task],
            "two": both[0][task],
            "others": [theirs[task] for theirs in both[1:]],
            "two_from_one": apart(two, one),
            "halves_from_straight": apart(halves, two),
            "halves_are_straight": bool(torch.equal(halves, two)),
        }
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two GPUs")
    from longview.data.images import prepare_images
    from tests.image_classes import write_classes
    from tests.training.conftest import write_tiny

    folder = tmp_path_factory.mktemp("gpus")
    images = prepare_images(write_classes(folder / "source"), out=folder / "images", workers=0, test_classes=0.34)
    logs = write_tiny(folder / "logs")
    return compare(folder, {"logs": str(logs.path), "images": str(images.path)}, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_gpus_train_like_one(found: dict[str, Any], task: str) -> None:
    one, two = found[task]["one"], found[task]["two"]
    assert two["losses"] == pytest.approx(one["losses"], rel=SAME)
    assert found[task]["two_from_one"] < SAME
    assert any("trained on 2 processes" in note for note in two["notes"])
    assert [theirs["metrics"] for theirs in found[task]["others"]] == [two["metrics"]], "all know what one evaluated"


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_signal_to_one_process_stops_both_and_the_run_resumes(found: dict[str, Any], task: str) -> None:
    assert "the checkpoint is in" in found[task]["two"]["stopped"]
    assert found[task]["halves_from_straight"] < SAME
    assert found[task]["two"]["halves"]["losses"] == pytest.approx(found[task]["two"]["losses"], rel=SAME)


def main(words: list[str]) -> None:
    from longview.evaluation.environment import environment
    from longview.files import write_json

    file, logs, images = words
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder), {"logs": logs, "images": images}, REAL)
    command = f"python -m tests.training.test_several_gpus results/{Path(file).name} data/ml-1m data/omniglot"
    write_json(Path(file), {"check": "several-gpus", "command": command, "tasks": rows, "environment": environment()})


if __name__ == "__main__":
    main(sys.argv[1:])
