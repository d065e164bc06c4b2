"""The run directory: loads as it was trained, and says what is wrong where it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longview.data.batches import batch_of_sequences
from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.training import load_model, save_model
from longview.training.config import RunConfig
from longview.training.rundir import start_run

Configure = Callable[..., RunConfig]
MakeTiny = Callable[[int], PreparedData]


@pytest.fixture
def run(tiny: PreparedData, tiny_config: Configure, tmp_path: Path) -> Path:
    config = tiny_config()
    start_run(tmp_path / "run", config, tiny)
    torch.manual_seed(0)
    save_model(tmp_path / "run", config.model.build(tiny.num_items), epoch=3)
    return tmp_path / "run"


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_saved_model_gives_the_same_numbers(tiny: PreparedData, tiny_config: Configure, tmp_path: Path) -> None:
    config = tiny_config()
    model = config.model.build(tiny.num_items).eval()
    start_run(tmp_path / "run", config, tiny)
    save_model(tmp_path / "run", model)
    loaded = load_model(tmp_path / "run")
    batch = batch_of_sequences([[1, 2, 3], [5]])
    assert torch.equal(loaded.model.user_vectors(batch), model.user_vectors(batch))
    assert (loaded.config, loaded.result) == (config, None)
    assert loaded.item_ids.external([2]).to_pylist() == ["item 2"]
    assert loaded.user_ids.index(["user 7", "nobody"]).tolist() == [7, -1]
    assert not loaded.model.training


def test_it_finds_its_data_set_again(run: Path, tiny: PreparedData) -> None:
    assert load_model(run).open_data().fingerprint == tiny.fingerprint


def test_a_data_set_that_moved_can_be_pointed_at(run: Path, tiny: PreparedData, tmp_path: Path) -> None:
    change(run / "data.json", path="/nowhere")
    with pytest.raises(InputError, match="no longer at /nowhere; say where it is: --data"):
        load_model(run).open_data()
    assert load_model(run).open_data(tiny.path).fingerprint == tiny.fingerprint


def test_another_data_set_is_refused(run: Path, make_tiny: MakeTiny) -> None:
    other = make_tiny(5)
    with pytest.raises(InputError, match=rf"fingerprint.*{other.fingerprint}"):
        load_model(run).check_data(other)


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"not a run directory \(no config\.json\)"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "data.json", "items.arrow", "users.arrow", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "foreign"])
def test_every_damaged_file_is_named(run: Path, name: str, damage: str) -> None:
    file = run / name
    if damage == "missing":
        file.unlink()
    elif damage == "foreign":
        file.write_text('{"hello": 1}')
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else file.stat().st_size // 2])
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load_model(run)


def test_an_unknown_key_is_named_with_the_nearest(run: Path) -> None:
    values = json.loads((run / "config.json").read_text())
    values["model"]["widht"] = values["model"].pop("width")
    (run / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"unknown key 'model\.widht' \(did you mean 'width'\?\)"):
        load_model(run)


def test_weights_of_another_shape_are_refused(run: Path) -> None:
    values = json.loads((run / "config.json").read_text())
    values["model"]["width"] = 32
    (run / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"does not fit config\.json.*shape"):
        load_model(run)


def test_ids_that_do_not_cover_the_model_are_refused(run: Path, make_tiny: MakeTiny, tmp_path: Path) -> None:
    start_run(tmp_path / "second", load_model(run).config, make_tiny(1))
    shutil.copy(tmp_path / "second" / "items.arrow", run / "items.arrow")
    with pytest.raises(InputError, match="sizes"):
        load_model(run)


def test_a_later_schema_is_refused(run: Path) -> None:
    change(run / "config.json", schema_version=2)
    with pytest.raises(InputError, match="schema version 1"):
        load_model(run)
