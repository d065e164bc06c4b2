"""Every form of the product kernels gives the same result, and what ships compiles for Hopper without spilling."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.hstu_layer.helpers import DEVICE
from tests.ops.offline import compiled

MODULES = ("triton_norm", "triton_project", "triton_output", "triton_backward")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("resident", [0, 1])
@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("form", ["fold", "inside", "tile"])
def test_projection(form: Any, halves: int, resident: int) -> None:
    from longview.ops.hstu_layer.tiling import Tiling
    from longview.ops.hstu_layer.triton_project import fold, project

    z, weight, bias = normal(70, 64), normal(88, 64, seed=1), normal(88, seed=2)
    gamma, beta = normal(64, seed=3), normal(64, seed=4)
    tiling = Tiling(32, 32, 32, 4, 2, group=2, resident=resident, halves=halves, form=form)
    found = project(z, fold(weight, bias, gamma, beta, z.dtype), 40, 1e-6, save_pre=True, tiling=tiling)
    x = torch.nn.functional.layer_norm(z.double(), (64,), gamma.double(), beta.double(), 1e-6)
    pre = x @ weight.double().T + bias.double()
    expected = torch.cat([torch.nn.functional.silu(pre[:, :40]), pre[:, 40:]], 1)
    torch.testing.assert_close(found.uvqk.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pre.double(), pre[:, :40], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.statistics[0].double(), z.double().mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("resident", [0, 1])
@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_output(rate: float, halves: int, resident: int) -> None:
    from longview.ops.hstu_layer.tiling import Tiling
    from longview.ops.hstu_layer.triton_output import Gate, output

    z, a, uvqk = normal(70, 40), normal(70, 64, seed=1), normal(70, 96, seed=2)
    weight, bias = normal(40, 64, seed=3), normal(40, seed=4)
    gate = Gate(normal(64, seed=5), normal(64, seed=6), 1, 1e-6, rate, 77)
    tiling = Tiling(32, 32, 32, 4, 2, resident=resident, halves=halves, form="gated")
    u = uvqk[:, :64]
    gated, statistics, gated_rows = output(z, a, u, gate, weight, bias, keep_gated=True, tiling=tiling)
    given, given_statistics, given_rows = output(
        z, a, u, gate, weight, bias, keep_gated=True, tiling=replace(tiling, form="given")
    )
    torch.testing.assert_close(gated, given, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gated_rows, given_rows, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics, given_statistics, rtol=1e-5, atol=1e-6)
    assert (gated_rows == 0).any() == (rate > 0)


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or importlib.util.find_spec("triton") is None, reason="needs triton"
)
@pytest.mark.parametrize("module", MODULES)
def test_what_ships_compiles_without_spilling(module: str) -> None:
    rows = compiled(f"longview.ops.hstu_layer.{module}")
    for row in rows:
        assert row["stack"] == 0, row
        if row["name"].startswith(("project", "output")):
            assert row["wgmma"] > 0, row
