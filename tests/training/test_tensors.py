"""Tensors on a disk that is full."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from longview.errors import LongviewError
from longview.training import checkpoint, weights
from longview.training.checkpoint import latest_checkpoint, save_checkpoint
from longview.training.tensors import all_finite, save_file


def full(*_: object, **__: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def odd(*_: object, **__: object) -> None:
    raise SafetensorError("something else")


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "w.safetensors"))


def test_other_errors_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safetensors.torch.save_file", odd)
    with pytest.raises(SafetensorError, match="something else"):
        save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = save_checkpoint(tmp_path, 1, {"w": torch.zeros(2)}, {})
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(LongviewError, match="the disk is full"):
        save_checkpoint(tmp_path, 2, {"w": torch.ones(2)}, {})
    assert latest_checkpoint(tmp_path) == before
    assert {path.stem for path in tmp_path.iterdir()} == {before.stem}


def test_models_and_checkpoints_are_written_by_it() -> None:
    assert checkpoint.save_file is weights.save_file is save_file


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_none_is_found_anywhere(dtype: torch.dtype, value: float) -> None:
    tensors = [torch.arange(3), torch.empty(0), torch.full((70, 1000), torch.finfo(dtype).max, dtype=dtype)]
    assert all_finite(tensors), "the largest numbers are numbers"
    for place in (0, 34_567, 69_999):
        broken = tensors[2].clone()
        broken.view(-1)[place] = value
        assert not all_finite([*tensors, broken])


def test_nothing_at_all_is_finite() -> None:
    assert all_finite([])
    assert all_finite([torch.arange(3)])
