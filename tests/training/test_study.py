"""Several seeds, one result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.training import InterruptedRunError, study
from longview.training.config import RunConfig
from longview.training.study import run_study

Configure = Callable[..., RunConfig]


def test_a_study_is_the_mean_of_its_seeds(tiny: PreparedData, tiny_config: Configure, tmp_path: Path) -> None:
    result = run_study(tiny_config("loop.epochs=1"), tiny, tmp_path / "study", seeds=(3, 4), command="make it")
    assert [entry["seed"] for entry in result["seeds"]] == [3, 4]
    values = [entry["metrics"]["ndcg@10"] for entry in result["seeds"]]
    assert values[0] != values[1]
    assert result["mean"]["ndcg@10"] == pytest.approx(sum(values) / 2)
    assert (result["command"], result["fingerprint"]) == ("make it", tiny.fingerprint)
    assert (tmp_path / "study" / "study.json").exists()


def test_a_study_cut_short_trains_only_what_is_missing(
    tiny: PreparedData, tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("loop.epochs=1")
    run_study(config, tiny, tmp_path / "study", seeds=(0,), command="")
    trained: list[int] = []
    real = study.train

    def counted(config: RunConfig, *rest: Any, **options: Any) -> Any:
        trained.append(config.loop.seed)
        return real(config, *rest, **options)

    monkeypatch.setattr(study, "train", counted)
    run_study(config, tiny, tmp_path / "study", seeds=(0, 1), command="")
    assert trained == [1]


def test_runs_of_another_configuration_are_not_mixed_in(
    tiny: PreparedData, tiny_config: Configure, tmp_path: Path
) -> None:
    run_study(tiny_config("loop.epochs=1"), tiny, tmp_path / "study", seeds=(0,), command="")
    with pytest.raises(InputError, match="another configuration"):
        run_study(tiny_config("loop.epochs=1", "model.dropout=0.4"), tiny, tmp_path / "study", seeds=(0,), command="")


def test_an_interrupted_study_says_that_it_goes_on_by_itself(
    tiny: PreparedData, tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise InterruptedRunError("stopped")

    monkeypatch.setattr(study, "train", interrupted)
    with pytest.raises(InterruptedRunError, match=r"seed 7; .*seed-7/checkpoint.*the same study again"):
        run_study(tiny_config(), tiny, tmp_path / "study", seeds=(7,), command="")


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_must_be_there_and_differ(
    tiny: PreparedData, tiny_config: Configure, tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match="seeds"):
        run_study(tiny_config(), tiny, tmp_path / "study", seeds=seeds, command="")


def test_what_smaller_tables_cost_is_part_of_the_summary(
    tiny: PreparedData, tiny_config: Configure, tmp_path: Path
) -> None:
    result = run_study(
        tiny_config("loop.epochs=1"), tiny, tmp_path / "study", seeds=(0, 1), command="", tables=("int4",)
    )
    (small,) = result["quantised"]
    full = [entry["metrics"]["ndcg@10"] for entry in result["seeds"]]
    assert small["tables"] == "int4"
    assert small["metrics"]["ndcg@10"]["full"] == pytest.approx(sum(full) / 2)
    assert len(small["metrics"]["ndcg@10"]["seeds"]) == 2


def test_tables_are_refused_before_anything_is_trained(
    tiny: PreparedData, tiny_config: Configure, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="choose int8 or int4"):
        run_study(tiny_config(), tiny, tmp_path / "study", command="", tables=("int2",))
    config = tiny_config("task=ranking")
    with pytest.raises(InputError, match="longview evaluate RUN"):
        run_study(config, tiny, tmp_path / "study", command="", tables=("int4",))
    assert not (tmp_path / "study").exists()
