"""bf16 only where it pays, and a reason where it is off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.models.retriever import RetrieverConfig
from longview.training import train
from longview.training.config import RunConfig
from longview.training.precision import choose_precision, fp8_note

CPU = torch.device("cpu")


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    def has_bf16(answer: bool) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: answer)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    return has_bf16


def test_a_cpu_with_bf16_units_uses_them(cpu: Callable[[bool], None]) -> None:
    cpu(True)
    assert choose_precision("bf16", CPU) == (torch.bfloat16, None)


def test_a_cpu_without_says_why(cpu: Callable[[bool], None]) -> None:
    cpu(False)
    dtype, note = choose_precision("bf16", CPU)
    assert dtype == torch.float32
    assert note is not None
    assert "neither AVX512-BF16 nor AMX" in note


def test_float32_needs_no_excuse() -> None:
    assert choose_precision("float32", CPU) == (torch.float32, None)


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_records_why_bf16_is_off(
    cpu: Callable[[bool], None],
    tiny: PreparedData,
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    fast: bool,
) -> None:
    cpu(fast)
    result = train(tiny_config("loop.precision=bf16", "loop.epochs=3"), tiny, tmp_path / "run")
    assert bool(result.notes) is not fast
    assert result.state.epochs[-1]["loss"] < result.state.epochs[0]["loss"]


class TestEightBitProducts:
    def test_nothing_is_said_where_nothing_was_asked(self) -> None:
        assert fp8_note(RetrieverConfig(), CPU) is None

    def test_on_a_cpu_they_are_emulated_by_name_and_never_of_themselves(
        self, tiny: PreparedData, tiny_config: Callable[..., RunConfig], tmp_path: Path
    ) -> None:
        notes = {}
        for name in ("run", "auto", "fp8"):
            config = tiny_config(f"model.layer.precision={name}", "loop.epochs=3")
            result = train(config, tiny, tmp_path / name)
            notes[name] = (result.notes, [epoch["loss"] for epoch in result.state.epochs])
        assert notes["run"][0] == []
        assert "layer.precision auto stays off: FP8 products need a CUDA GPU" in notes["auto"][0][0]
        assert notes["auto"][1] == notes["run"][1]
        assert "emulated on a CPU" in notes["fp8"][0][0]
        assert notes["fp8"][1] != notes["run"][1]
        assert notes["fp8"][1][-1] == pytest.approx(notes["run"][1][-1], rel=0.05)

    def test_by_name_on_a_gpu_without_them_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from longview.ops.quantisation import choice

        monkeypatch.setattr(choice, "why_no_triton", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        config = RetrieverConfig.model_validate({"width": 1024, "layer": {"precision": "fp8"}})
        with pytest.raises(
            InputError, match=r"precision fp8 cannot be used here: this GPU has compute capability 8\.0"
        ):
            fp8_note(config, torch.device("cuda"))
        config = RetrieverConfig.model_validate({"width": 1024, "layer": {"precision": "auto"}})
        assert "auto stays off: this GPU has compute capability 8.0" in str(fp8_note(config, torch.device("cuda")))

    def test_layers_that_have_no_such_products_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"layer\.precision fp8 is of HSTU layers"):
            RetrieverConfig.model_validate({"kind": "sasrec", "layer": {"precision": "fp8"}})
