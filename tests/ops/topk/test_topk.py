"""Blocked top-k against sorting everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longview.errors import InputError
from longview.ops.topk import blocked_topk, dense_topk, select_topk


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    """Small whole-number vectors, so that ties are everywhere and sums are exact."""
    queries, items, width = draw(st.integers(1, 7)), draw(st.integers(1, 25)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lengths = torch.randint(0, 6, (queries,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    exclude = (torch.randint(0, items, (int(offsets[-1]),), generator=generator), offsets)
    return {
        "queries": torch.randint(-2, 3, (queries, width), generator=generator).float(),
        "items": torch.randint(-2, 3, (items, width), generator=generator).float(),
        "k": draw(st.integers(1, items)),
        "exclude": draw(st.sampled_from([None, exclude])),
        "allow": draw(st.sampled_from([None, torch.rand(items, generator=generator) < 0.5])),
        "deny": draw(st.sampled_from([None, torch.randint(0, items, (3,), generator=generator)])),
    }


@settings(deadline=None, max_examples=300)
@given(problem=problems(), block=st.sampled_from([None, 1, 7, 40]))
def test_equals_a_stable_sort_of_all_scores(problem: dict[str, object], block: int | None) -> None:
    scores, indices = blocked_topk(**problem, block=block)  # type: ignore[arg-type]
    expected_scores, expected_indices = dense_topk(**problem)  # type: ignore[arg-type]
    assert torch.equal(indices, expected_indices)
    assert torch.equal(scores, expected_scores)


def test_real_vectors_in_many_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, items = torch.randn(50, 8, generator=generator), torch.randn(1000, 8, generator=generator)
    offsets = torch.arange(51) * 30
    exclude = (torch.randint(0, 1000, (1500,), generator=generator), offsets)
    scores, indices = blocked_topk(queries, items, 20, exclude=exclude, block=700)
    expected_scores, expected = dense_topk(queries, items, 20, exclude=exclude)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(scores, expected_scores)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_gives_the_answer_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randint(-2, 3, (50, 4), generator=generator).float()
    items = torch.randint(-2, 3, (1000, 4), generator=generator).float()
    exclude = (torch.randint(0, 1000, (1500,), generator=generator), torch.arange(51) * 30)
    there = blocked_topk(queries.cuda(), items.cuda(), 20, exclude=(exclude[0].cuda(), exclude[1].cuda()), block=700)
    assert there[1].cpu().tolist() == dense_topk(queries, items, 20, exclude=exclude)[1].tolist()


def test_ties_go_to_the_lower_index_inside_and_at_the_edge() -> None:
    scores = torch.tensor([[1.0, 5.0, 1.0, 5.0, 1.0, 0.0]])
    values, columns = select_topk(scores, 3)
    assert columns.tolist() == [[1, 3, 0]]
    assert values.tolist() == [[5, 5, 1]]


def test_places_without_an_item_left_are_marked() -> None:
    queries, items = torch.ones(1, 1), torch.arange(4.0)[:, None]
    exclude = (torch.tensor([0, 1, 3]), torch.tensor([0, 3]))
    scores, indices = blocked_topk(queries, items, 3, exclude=exclude)
    assert indices.tolist() == [[2, -1, -1]]
    assert scores.tolist() == [[2.0, -torch.inf, -torch.inf]]


def test_nothing_allowed_is_an_empty_answer_not_a_crash() -> None:
    scores, indices = blocked_topk(torch.ones(2, 1), torch.ones(3, 1), 2, allow=torch.zeros(3, dtype=torch.bool))
    assert (indices == -1).all()
    assert (scores == -torch.inf).all()


def test_deny_wins_over_allow() -> None:
    allow = torch.tensor([True, True, False])
    _, indices = blocked_topk(torch.ones(1, 1), torch.ones(3, 1), 2, allow=allow, deny=torch.tensor([0]))
    assert indices.tolist() == [[1, -1]]
    assert allow.tolist() == [True, True, False], "the caller's mask is left as it was"


def test_no_queries() -> None:
    scores, indices = blocked_topk(torch.ones(0, 2), torch.ones(3, 2), 2)
    assert scores.shape == indices.shape == (0, 2)


@pytest.mark.parametrize("k", [0, 4])
def test_k_outside_the_catalogue_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=f"k={k} is outside 1 to 3"):
        blocked_topk(torch.ones(1, 2), torch.ones(3, 2), k)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(InputError, match=r"\(1, 2\) and \(3, 4\)"):
        blocked_topk(torch.ones(1, 2), torch.ones(3, 4), 1)
    with pytest.raises(InputError, match="offsets for 2 rows but there are 1"):
        blocked_topk(
            torch.ones(1, 2), torch.ones(3, 2), 1, exclude=(torch.zeros(0).long(), torch.zeros(3, dtype=torch.int64))
        )
    with pytest.raises(InputError, match="bool mask"):
        blocked_topk(torch.ones(1, 2), torch.ones(3, 2), 1, allow=torch.ones(2, dtype=torch.bool))
