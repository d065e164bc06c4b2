"""A study's cells: what is compared, what is one run under several names, and what names a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longview.errors import InputError
from longview.training.studies import StudyConfig, load_study
from tests.training.studies.conftest import ABLATION, SCALING

Make = Callable[..., StudyConfig]
CONFIGS = Path(__file__).parents[3] / "configs"


def test_an_ablation_has_a_cell_a_variant_and_the_reference_once(make_study: Make) -> None:
    cells = make_study(ABLATION).cells()
    assert [cell.config.name for cell in cells] == ["reference", "mask: full", "actions: absent"] * 2
    assert [cell.seed for cell in cells] == [0, 0, 0, 1, 1, 1]  # a whole study of one seed before the next
    reference = cells[0]
    assert [one["part"] for one in reference.aliases] == ["mask", "actions"]
    assert cells[1].config.model.attention.local_window == 0
    assert cells[2].config.model.embedding.actions == "none"


def test_a_scaling_study_is_arms_by_lengths_by_depths(make_study: Make) -> None:
    cells = make_study(SCALING).cells()
    assert len(cells) == 8
    sizes = {tuple(cell.labels.values()): cell.config.model for cell in cells}
    assert sizes["HSTU", 64, 2].layers == 2
    assert sizes["HSTU", 16, 1].max_length == 16
    truncation = sizes["ULTRA", 64, 2].truncation
    assert truncation is not None
    assert truncation.layers == 1


def test_a_key_is_of_what_decides_the_result(make_study: Make) -> None:
    cell = make_study(ABLATION).cells()[0]
    assert cell.key("a") == make_study(ABLATION, name="other").cells()[0].key("a")
    assert cell.key("a") != cell.key("b")
    keys = {cell.key("a") for cell in make_study(ABLATION).cells()}
    assert len(keys) == 6
    assert make_study(ABLATION, preset="hstu-small").cells()[0].key("a") not in keys


def test_overrides_are_settings_of_all_cells(write_study: Callable[..., Path]) -> None:
    study = load_study(write_study(ABLATION), ["loop.epochs=3", "optimiser.rate=1e-4"], seeds=[7])
    assert {(cell.config.loop.epochs, cell.config.optimiser.rate, cell.seed) for cell in study.cells()} == {
        (3, 1e-4, 7)
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"parts": {}}, "an ablation needs parts"),
        ({"kind": "scaling"}, "needs arms, lengths and depths"),
        ({"seeds": [1, 1]}, "repeat"),
        ({"seeds": []}, "at least 1"),
        ({"data": {}}, "either path or lifelong"),
        ({"sedes": [1]}, "unknown key 'sedes'.*seeds"),
        ({"compare": ["HSTU", "X"]}, "no arm 'HSTU'"),
    ],
)
def test_bad_studies(make_study: Make, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make_study(ABLATION, **changes)


def test_a_wrong_setting_names_the_cell(make_study: Make) -> None:
    study = make_study(ABLATION, parts={"mask": {"odd": {"model.attention.windw": 3}}})
    with pytest.raises(InputError, match=r"mask: odd.*windw"):
        study.cells()


SHIPPED = [*CONFIGS.glob("study-ablation*.yaml"), *CONFIGS.glob("study-scaling*.yaml")]


@pytest.mark.parametrize("file", sorted(SHIPPED), ids=lambda p: p.stem)
def test_shipped_studies_are_whole(file: Path) -> None:
    study = load_study(file)
    assert len(study.cells()) > 3 * len(study.seeds)
    assert len(study.seeds) >= 3
