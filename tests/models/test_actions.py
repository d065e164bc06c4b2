"""What happened at an event: a sum of embeddings or an MLP of them, and nothing of it at candidates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longview.data.schema import Buckets, Schema
from longview.models.actions import ActionEmbedding, AtTargets, Merge

RATING = Buckets(name="rating", boundaries=(2.0, 4.0))
SCHEMA = Schema(actions=("like", "cart", "buy"), strengths=(RATING,))
NONE = math.nan


def make(merge: Merge = "sum", at_targets: AtTargets = "zero", schema: Schema = SCHEMA) -> ActionEmbedding:
    torch.manual_seed(0)
    return ActionEmbedding(schema, 6, merge, at_targets)


def strengths(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


@given(bits=st.lists(st.integers(0, 7), min_size=1, max_size=6), data=st.data())
def test_a_sum_adds_the_rows_of_the_bits_and_of_the_bucket(bits: list[int], data: st.DataObject) -> None:
    values = data.draw(st.lists(st.sampled_from([NONE, -1.0, 2.0, 3.9, 50.0]), min_size=len(bits), max_size=len(bits)))
    module = make()
    found = module(torch.tensor(bits), strengths(*values), None, len(bits))
    assert module.bits is not None
    codes = RATING.encode(np.array(values))
    for row, (mask, code) in enumerate(zip(bits, codes, strict=True)):
        wanted = module.strengths[0].weight[int(code)]
        for bit in range(3):
            if mask >> bit & 1:
                wanted = wanted + module.bits[bit]
        assert torch.allclose(found[row], wanted, atol=1e-6)


@pytest.mark.parametrize("merge", ["sum", "mlp"])
def test_all_62_bits_count(merge: Merge) -> None:
    module = make(merge, schema=Schema(actions=tuple(f"a{i}" for i in range(62))))
    one_each = torch.tensor([1 << bit for bit in range(62)])
    found = module(one_each, None, None, 62)
    assert torch.unique(found, dim=0).shape[0] == 62


@pytest.mark.parametrize("merge", ["sum", "mlp"])
@pytest.mark.parametrize("at_targets", ["zero", "unknown"])
def test_what_is_said_of_candidates_is_not_read(merge: Merge, at_targets: AtTargets) -> None:
    module = make(merge, at_targets)
    if module.unknown is not None:
        torch.nn.init.normal_(module.unknown)
    ahead = torch.tensor([False, True, True])
    one = module(torch.tensor([5, 0, 0]), strengths(3, NONE, NONE), ahead, 3)
    other = module(torch.tensor([5, 7, 2]), strengths(3, 5, math.inf), ahead, 3)
    assert torch.equal(one, other)
    wanted = torch.zeros(6) if module.unknown is None else module.unknown
    assert torch.equal(one[1], wanted)


@pytest.mark.parametrize("at_targets", ["zero", "unknown"])
def test_where_nobody_knows_it_is_as_for_a_candidate(at_targets: AtTargets) -> None:
    module = make(at_targets=at_targets)
    ahead = torch.ones(2, dtype=torch.bool)
    assert torch.equal(module(None, None, None, 2), module(torch.tensor([1, 2]), strengths(1, 2), ahead, 2))


def test_actions_without_strengths_have_none() -> None:
    module, bits = make(), torch.tensor([1, 6])
    assert torch.equal(module(bits, None, None, 2), module(bits, strengths(NONE, NONE), None, 2))


def test_strengths_alone_are_enough() -> None:
    module = make(schema=Schema(strengths=(RATING,)))
    found = module(None, strengths(1, NONE), None, 2)
    assert torch.equal(found, module.strengths[0].weight[[1, 0]])


@pytest.mark.parametrize("merge", ["sum", "mlp"])
def test_everything_learns(merge: Merge) -> None:
    module = make(merge, "unknown")
    bits, values = torch.tensor([1, 2, 4, 0, 0, 0]), strengths(1, 2, 5, NONE, 0, 0)
    ahead = torch.tensor([False] * 5 + [True])
    (module(bits, values, ahead, 6) * torch.randn(6, 6)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
