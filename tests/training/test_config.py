"""Presets, files and `--set`: one configuration, and errors that say which key is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from longview.data.schema import Schema
from longview.errors import InputError
from longview.training.config import RunConfig, preset_names, resolve_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", preset_names())
def test_presets_resolve_and_build(name: str) -> None:
    config = resolve_config(name)
    assert config.name == name
    actions = ("like", "cart", "buy")
    schema = Schema(actions=actions if config.model.embedding.actions != "none" else ())
    assert config.model.build(20, actions, schema).num_items == 20


def test_the_designed_presets_exist() -> None:
    assert {"hstu-small", "hstu-large", "ultra-small", "sasrec", "ranking-small"} <= set(preset_names())


# Grids of many configurations (study-*.yaml) are in tests/training/studies.
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[!s]*.yaml")), ids=lambda p: p.stem)
def test_published_configurations_resolve(path: Path) -> None:
    assert isinstance(resolve_config(str(path)), RunConfig)


def test_set_overrides_and_round_trip(tmp_path: Path) -> None:
    config = resolve_config("hstu-small", ["model.layers=8", "optimiser.rate=1e-4", "loop.max_minutes=5"])
    assert (config.model.layers, config.optimiser.rate, config.loop.max_minutes) == (8, 1e-4, 5)
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert resolve_config(str(path)) == config


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("hstu-smal", [], "did you mean 'hstu-small'"),
        ("hstu-small", ["model.layer=8"], "model.layer"),
        ("hstu-small", ["optimizer.rate=1"], "did you mean 'optimiser'"),
        ("hstu-small", ["model.attention.local_windw=8"], "did you mean 'local_window'"),
        ("hstu-small", ["model.layers"], "expected key=value"),
        ("hstu-small", ["model.layers.deep=1"], "is a value"),
        ("hstu-small", ["loop.epochs=0"], "loop.epochs"),
        ("hstu-small", ["model.heads=3"], r"--set: model: width \d+ is not a multiple of heads 3$"),
        ("hstu-small", ["model.attention.global_size=8"], "model.attention: global_size 8 .* set local_window"),
        ("nowhere.yaml", [], "no such configuration file"),
    ],
)
def test_what_is_wrong_is_named(name: str, overrides: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve_config(name, overrides)


def test_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- model\n")
    with pytest.raises(InputError, match="expected a mapping"):
        resolve_config(str(path))
    path.write_text("model: {layers: [")
    with pytest.raises(InputError, match="not valid YAML"):
        resolve_config(str(path))
