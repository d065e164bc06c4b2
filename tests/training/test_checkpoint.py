"""Checkpoints: whole or not there, the previous one kept until the next is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longview.errors import InputError
from longview.training import checkpoint
from longview.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint


def write(directory: Path, step: int) -> Path:
    return save_checkpoint(directory, step, {"w": torch.full((3,), float(step))}, {"state": {"epoch": step}})


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2).T, "b": torch.arange(5, dtype=torch.uint8), "c": torch.tensor(2.5)}
    path = save_checkpoint(tmp_path, 7, tensors, {"state": {"best": None, "seconds": 0.1 + 0.2}})
    loaded, values = load_checkpoint(path)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert (values["step"], values["state"]) == (7, {"best": None, "seconds": 0.1 + 0.2})


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    for step in (9, 10, 1_000_000_000):
        newest = write(tmp_path, step)
    assert latest_checkpoint(tmp_path) == newest
    assert {p.stem for p in tmp_path.iterdir()} == {newest.stem}


@pytest.mark.parametrize("part", ["save_file", "write_json"])
def test_dying_while_writing_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    before = write(tmp_path, 1)

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, part, dies)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == before
    assert load_checkpoint(before)[0]["w"][0] == 1
    assert latest_checkpoint(tmp_path) != write(tmp_path, 2)
    assert not [p for p in tmp_path.iterdir() if "step-000000001" in p.name]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, 3)
    file = path.with_suffix(suffix)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=r"step-000000003.*damaged"):
        load_checkpoint(path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    path.write_text('{"schema_version": 99}')
    with pytest.raises(InputError, match="schema 1"):
        load_checkpoint(path)
