"""Every tiling of the product kernels gives the same result, and what ships compiles for Hopper without spilling."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import Tensor

from tests.ops.hstu_layer.helpers import DEVICE
from tests.ops.offline import compiled

MODULES = ("triton_norm", "triton_project", "triton_output", "triton_backward")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("resident", [0, 1])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("activated", [40, 88])
@pytest.mark.parametrize("product", [torch.float32, torch.float16])
def test_projection(product: torch.dtype, activated: int, parts: int, resident: int) -> None:
    from longview.ops.hstu_layer.tiling import Tiling
    from longview.ops.hstu_layer.triton_project import fold, project

    z, weight, bias = normal(70, 64), normal(88, 64, seed=1), normal(88, seed=2)
    gamma, beta = normal(64, seed=3), normal(64, seed=4)
    tiling = Tiling(32, 32, 32, 4, 2, group=2, resident=resident, parts=parts)
    folded = fold(weight, bias, gamma, beta, product)
    found = project(z, folded, activated, 1e-6, save_pre=True, save_normed=True, tiling=tiling)
    x = torch.nn.functional.layer_norm(z.double(), (64,), gamma.double(), beta.double(), 1e-6)
    pre = x @ weight.double().T + bias.double()
    expected = torch.cat([torch.nn.functional.silu(pre[:, :activated]), pre[:, activated:]], 1)
    near = {"rtol": 1e-5, "atol": 1e-5} if product == torch.float32 else {"rtol": 1e-2, "atol": 4e-2}
    assert found.uvqk.dtype == product
    torch.testing.assert_close(found.uvqk.double(), expected, **near)
    torch.testing.assert_close(found.pre.double(), pre[:, :activated], **near)
    torch.testing.assert_close(found.normed.double(), torch.nn.functional.layer_norm(z.double(), (64,)), **near)
    torch.testing.assert_close(found.statistics[0].double(), z.double().mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("resident", [0, 1])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("product", [torch.float32, torch.float16])
def test_output(product: torch.dtype, parts: int, resident: int) -> None:
    from longview.ops.hstu_layer.tiling import Tiling
    from longview.ops.hstu_layer.triton_output import output

    z, gated = normal(70, 40), normal(70, 64, seed=1).to(product)
    weight, bias = normal(40, 64, seed=3).to(product), normal(40, seed=4)
    found = output(z, gated, weight, bias, Tiling(32, 32, 32, 4, 2, resident=resident, parts=parts))
    assert found.dtype == z.dtype
    expected = z.double() + gated.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


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
