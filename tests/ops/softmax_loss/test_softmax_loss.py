"""Full and sampled softmax losses agree with the dense reference, in value and in gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from longview.errors import InputError
from longview.ops.softmax_loss import full_softmax_loss, reference, sampled_softmax_loss

Loss = Any


def problem(
    n: int = 23, num_items: int = 17, width: int = 5, *, seed: int = 0, scale: float = 1.0, dtype: Any = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(n, width, generator=generator, dtype=torch.float64) * scale
    items = torch.randn(num_items, width, generator=generator, dtype=torch.float64)
    targets = torch.randint(num_items, (n,), generator=generator)
    return queries.to(dtype).requires_grad_(), items.to(dtype).requires_grad_(), targets


def value_and_gradients(loss: Loss, queries: Tensor, items: Tensor, *rest: Any, **options: Any) -> list[Tensor]:
    queries, items = queries.detach().requires_grad_(), items.detach().requires_grad_()
    value = loss(queries, items, *rest, **options)
    return [value.detach(), *torch.autograd.grad(value, (queries, items))]


def negatives_of(groups: int | None, num_items: int, m: int = 6, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_items, (m,) if groups is None else (groups, m), generator=generator)


class TestFull:
    def test_the_reference_is_cross_entropy_written_out(self) -> None:
        queries, items, targets = problem()
        logits = queries @ items.T / 0.7
        by_hand = (torch.logsumexp(logits, 1) - logits[torch.arange(23), targets]).mean()
        assert reference.full_softmax_loss(queries, items, targets, temperature=0.7).allclose(by_hand)

    @given(
        n=st.integers(1, 40),
        num_items=st.integers(1, 40),
        block=st.integers(1, 50) | st.none(),
        temperature=st.floats(0.05, 3),
        smoothing=st.sampled_from([0.0, 0.1, 0.9]),
        scale=st.sampled_from([0.01, 1.0, 30.0]),  # the largest leaves the range in which exp needs no shift
    )
    @settings(deadline=None, max_examples=60)
    def test_any_shape_and_block_equals_the_reference(
        self, n: int, num_items: int, block: int | None, temperature: float, smoothing: float, scale: float
    ) -> None:
        queries, items, targets = problem(n, num_items, scale=scale)
        options = {"temperature": temperature, "label_smoothing": smoothing}
        ours = value_and_gradients(full_softmax_loss, queries, items, targets, block=block, **options)
        expected = value_and_gradients(reference.full_softmax_loss, queries, items, targets, **options)
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_gradients_are_those_of_finite_differences(self, smoothing: float) -> None:
        queries, items, targets = problem(7, 6, 3)
        loss = lambda q, x: full_softmax_loss(q, x, targets, temperature=0.5, label_smoothing=smoothing, block=3)
        assert torch.autograd.gradcheck(loss, (queries, items))

    def test_float32_is_as_exact_as_torch(self) -> None:
        queries, items, targets = problem(500, 300, 32, dtype=torch.float32)
        ours = value_and_gradients(full_softmax_loss, queries, items, targets)
        expected = value_and_gradients(reference.full_softmax_loss, queries.double(), items.double(), targets)
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("offset", [0.0, 200.0, -200.0])
    def test_huge_logits_do_not_overflow(self, offset: float) -> None:
        logits = torch.tensor([[500.0, -500.0, 499.0]]) + offset
        items = torch.eye(3)
        loss, grad, _ = value_and_gradients(full_softmax_loss, logits, items, torch.tensor([2]))
        assert loss.item() == pytest.approx(1 + math.log1p(math.exp(-1)), rel=1e-6)
        p = 1 / (1 + math.exp(-1))
        torch.testing.assert_close(grad, torch.tensor([[p, 0.0, -p]]))

    def test_only_what_needs_a_gradient_gets_one(self) -> None:
        queries, items, targets = problem()
        full_softmax_loss(queries, items.detach(), targets).backward()
        expected = value_and_gradients(reference.full_softmax_loss, queries, items, targets)[1]
        torch.testing.assert_close(queries.grad, expected)
        with torch.no_grad():
            assert not full_softmax_loss(queries, items, targets).requires_grad

    def test_the_incoming_gradient_scales(self) -> None:
        queries, items, targets = problem()
        (3 * full_softmax_loss(queries, items, targets)).backward()
        expected = value_and_gradients(reference.full_softmax_loss, queries, items, targets)
        torch.testing.assert_close(queries.grad, 3 * expected[1])
        torch.testing.assert_close(items.grad, 3 * expected[2])

    def test_no_block_of_logits_outlives_the_forward_pass(self) -> None:
        queries, items, targets = problem(64, 1000, 4, dtype=torch.float32)
        loss = full_softmax_loss(queries, items, targets, block=8)
        kept = sum(t.numel() for t in loss.grad_fn.saved_tensors)
        assert kept == queries.numel() + items.numel()

    def test_nan_is_not_hidden(self) -> None:
        queries, items, targets = problem(dtype=torch.float32)
        with torch.no_grad():
            queries[3, 1] = float("nan")
        assert full_softmax_loss(queries, items, targets).isnan()
        assert sampled_softmax_loss(queries, items, targets, negatives_of(None, 17)).isnan()


class TestSampled:
    @given(
        n=st.integers(1, 40),
        num_items=st.integers(1, 20),
        m=st.integers(1, 12),
        groups=st.integers(1, 6) | st.none(),
        block=st.integers(1, 50) | st.none(),
        corrected=st.booleans(),
        scale=st.sampled_from([0.1, 30.0]),
    )
    # Targets that take all but some 1e-12 of the whole, beside long queries.
    @example(n=1, num_items=15, m=2, groups=None, block=None, corrected=False, scale=30.0)
    @example(n=1, num_items=8, m=10, groups=None, block=25, corrected=False, scale=30.0)
    @settings(deadline=None, max_examples=80)
    def test_any_shape_group_and_block_equals_the_reference(
        self, n: int, num_items: int, m: int, groups: int | None, block: int | None, corrected: bool, scale: float
    ) -> None:
        queries, items, targets = problem(n, num_items, scale=scale)
        negatives = negatives_of(groups, num_items, m)
        options: dict[str, Any] = {"temperature": 0.3}
        if corrected:
            log_q = torch.linspace(-5, -1, num_items, dtype=torch.float64)
            options |= {"negative_log_q": log_q[negatives], "target_log_q": log_q[targets]}
        ours = value_and_gradients(sampled_softmax_loss, queries, items, targets, negatives, block=block, **options)
        expected = value_and_gradients(reference.sampled_softmax_loss, queries, items, targets, negatives, **options)
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("groups", [None, 3])
    def test_gradients_are_those_of_finite_differences(self, groups: int | None) -> None:
        queries, items, targets = problem(7, 6, 3)
        negatives = negatives_of(groups, 6, 4)
        loss = lambda q, x: sampled_softmax_loss(q, x, targets, negatives, temperature=0.5, block=2)
        assert torch.autograd.gradcheck(loss, (queries, items))

    def test_every_other_item_as_negative_is_the_full_softmax(self) -> None:
        queries, items, targets = problem()
        everything = torch.arange(len(items))
        torch.testing.assert_close(
            sampled_softmax_loss(queries, items, targets, everything), full_softmax_loss(queries, items, targets)
        )

    def test_a_negative_equal_to_the_target_is_left_out(self) -> None:
        queries, items, _ = problem(1)
        target = torch.tensor([4])
        loss = sampled_softmax_loss(queries, items, target, torch.tensor([4, 4, 4]))
        assert loss.item() == pytest.approx(0, abs=1e-12)

    def test_log_q_makes_a_skewed_sample_estimate_the_full_softmax(self) -> None:
        queries, items, targets = problem(200, 50, 8, scale=0.5)
        q = torch.arange(1, 51, dtype=torch.float64)
        q /= q.sum()
        drawn = torch.multinomial(q, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
        # The target itself is left out of its negatives, so it is not corrected; the others stand for m·q draws.
        corrected = sampled_softmax_loss(queries, items, targets, drawn, negative_log_q=(q[drawn] * 20_000).log())
        full = full_softmax_loss(queries, items, targets)
        assert corrected.item() == pytest.approx(full.item(), rel=0.01)

    def test_a_second_group_sees_only_its_own_negatives(self) -> None:
        queries, items, targets = problem(4, 9)
        first, second = torch.tensor([1, 2]), torch.tensor([7, 8])
        targets = torch.tensor([0, 3, 4, 5])
        together = sampled_softmax_loss(queries, items, targets, torch.stack([first, second]))
        apart = [
            sampled_softmax_loss(queries[rows], items, targets[rows], negatives)
            for rows, negatives in ((slice(2), first), (slice(2, 4), second))
        ]
        torch.testing.assert_close(together, (apart[0] + apart[1]) / 2)


class TestBoth:
    @pytest.mark.parametrize("offset", [0.0, 64.0])  # with the larger, exp needs a shift
    @pytest.mark.parametrize("kind", ["full", "sampled"])
    def test_what_is_left_beside_an_almost_certain_target_keeps_its_digits(self, kind: str, offset: float) -> None:
        items = torch.cat([torch.eye(8), torch.ones(8, 1)], dim=1)
        queries = torch.cat([items[:5, :8] * 25, torch.full((5, 1), offset)], dim=1)  # shares of 1 - 7 exp(-25)
        targets, negatives = torch.arange(5), torch.arange(8)  # all items: the full softmax again
        if kind == "full":
            found = value_and_gradients(full_softmax_loss, queries, items, targets)
        else:
            found = value_and_gradients(sampled_softmax_loss, queries, items, targets, negatives)
        rest = (targets, negatives)
        expected = value_and_gradients(reference.sampled_softmax_loss, queries.double(), items.double(), *rest)
        for a, b in zip(found[1:], expected[1:], strict=True):
            assert (a.double() - b).norm() <= 1e-5 * b.norm()

    @pytest.mark.parametrize("kind", ["full", "sampled"])
    def test_autocast_products_stay_close_and_gradients_keep_their_dtype(self, kind: str) -> None:
        queries, items, targets = problem(300, 200, 32, scale=0.3, dtype=torch.float32)
        rest = (targets,) if kind == "full" else (targets, negatives_of(2, 200, 50))
        ours: Loss = full_softmax_loss if kind == "full" else sampled_softmax_loss
        exact = value_and_gradients(ours, queries, items, *rest)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = value_and_gradients(ours, queries, items, *rest)
        assert rounded[0].dtype == torch.float32
        assert abs(rounded[0] - exact[0]) < 2e-3
        for a, b in zip(rounded[1:], exact[1:], strict=True):
            assert a.dtype == torch.float32
            assert (a - b).norm() < 0.02 * b.norm()
            assert not torch.equal(a, b), "autocast must reach the matrix products"

    def test_bfloat16_inputs_get_bfloat16_gradients_and_a_float32_loss(self) -> None:
        queries, items, targets = problem(50, 40, 8, dtype=torch.bfloat16)
        loss, grad_queries, grad_items = value_and_gradients(full_softmax_loss, queries, items, targets)
        assert (loss.dtype, grad_queries.dtype, grad_items.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)

    @pytest.mark.parametrize("kind", ["full", "sampled"])
    def test_backward_can_be_repeated_and_scales(self, kind: str) -> None:
        queries, items, targets = problem()
        rest = (targets,) if kind == "full" else (targets, negatives_of(2, 17))
        ours: Loss = full_softmax_loss if kind == "full" else sampled_softmax_loss
        loss = ours(queries, items, *rest)
        once = torch.autograd.grad(loss, (queries, items), retain_graph=True)
        twice = torch.autograd.grad(2 * loss, (queries, items))
        for a, b in zip(once, twice, strict=True):
            torch.testing.assert_close(2 * a, b)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("kind", ["full", "sampled"])
    def test_a_gpu_computes_the_same(self, kind: str, dtype: torch.dtype) -> None:
        queries, items, targets = problem(700, 300, 64, scale=0.3, dtype=torch.float32)
        rest = (targets,) if kind == "full" else (targets, negatives_of(3, 300, 50))
        ours: Loss = full_softmax_loss if kind == "full" else sampled_softmax_loss
        expected = value_and_gradients(ours, queries, items, *rest)
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = value_and_gradients(ours, queries.cuda(), items.cuda(), *(x.cuda() for x in rest))
        allowed = 1e-5 if dtype == torch.float32 else 0.02
        for a, b in zip(found, expected, strict=True):
            assert (a.cpu() - b).norm() <= allowed * b.norm()

    @pytest.mark.parametrize("kind", ["full", "sampled"])
    def test_a_second_derivative_is_refused(self, kind: str) -> None:
        queries, items, targets = problem()
        if kind == "full":
            loss = full_softmax_loss(queries, items, targets)
        else:
            loss = sampled_softmax_loss(queries, items, targets, negatives_of(None, 17))
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(loss, queries, create_graph=True)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"queries": torch.zeros(3, 4)}, r"got \(3, 4\) float32 and \(5, 2\) float32"),
            ({"queries": torch.zeros(3, 2, dtype=torch.int64)}, "floating point"),
            ({"targets": torch.zeros(2, dtype=torch.int64)}, r"targets must be \(3,\) int64"),
            ({"targets": torch.zeros(3)}, "int64"),
            ({"items": torch.zeros(0, 2)}, "at least one"),
            ({"temperature": 0.0}, "temperature"),
            ({"block": 0}, "block"),
            ({"label_smoothing": 1.0}, "label_smoothing"),
        ],
    )
    def test_arguments_that_do_not_fit_are_named(self, change: dict[str, Any], message: str) -> None:
        arguments: dict[str, Any] = {
            "queries": torch.zeros(3, 2),
            "items": torch.zeros(5, 2),
            "targets": torch.zeros(3, dtype=torch.int64),
        }
        with pytest.raises(InputError, match=message):
            full_softmax_loss(**(arguments | change))

    def test_negatives_that_do_not_fit_are_named(self) -> None:
        queries, items, targets = problem()
        with pytest.raises(InputError, match="negatives must be"):
            sampled_softmax_loss(queries, items, targets, torch.zeros(3))
        with pytest.raises(InputError, match="negative_log_q must have the shape"):
            sampled_softmax_loss(queries, items, targets, negatives_of(2, 17), negative_log_q=torch.zeros(6))

    def test_the_reference_masks_and_smooths_as_torch_does(self) -> None:
        queries, items, targets = problem()
        assert reference.full_softmax_loss(queries, items, targets, label_smoothing=0.3).allclose(
            functional.cross_entropy(queries @ items.T, targets, label_smoothing=0.3)
        )


class TestRowsThatDoNotCount:
    """Padding, wherever it lies: its rows could hold anything."""

    @given(
        counts=st.lists(st.booleans(), min_size=1, max_size=40).filter(any),
        kind=st.sampled_from(["full", "smoothed", "sampled", "corrected"]),
        block=st.integers(1, 50) | st.none(),
    )
    @settings(deadline=None, max_examples=60)
    def test_the_loss_is_that_of_the_others(self, counts: list[bool], kind: str, block: int | None) -> None:
        counted = torch.tensor(counts)
        queries, items, targets = problem(len(counts))
        queries = torch.where(counted[:, None], queries, 1e9).detach()
        rest, options, own = (), {"temperature": 0.7}, {}
        loss: Loss = full_softmax_loss
        if kind == "smoothed":
            options["label_smoothing"] = 0.2
        elif kind != "full":
            loss, rest = sampled_softmax_loss, (negatives_of(None, 17),)
            if kind == "corrected":
                log_q = torch.linspace(-3, -1, 17, dtype=torch.float64)
                options["negative_log_q"] = log_q[rest[0]]
                own = {"target_log_q": log_q[targets]}
        found = value_and_gradients(
            loss, queries, items, targets, *rest, counted=counted, block=block, **options, **own
        )
        chosen = {name: value[counted] for name, value in own.items()}
        expected = value_and_gradients(loss, queries[counted], items, targets[counted], *rest, **options, **chosen)
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1][counted], expected[1])
        assert not found[1][~counted].any()
        torch.testing.assert_close(found[2], expected[2])

    def test_groups_are_runs_of_all_rows(self) -> None:
        queries, items, targets = problem()
        negatives, counted = negatives_of(4, 17), torch.arange(23) < 15
        found = value_and_gradients(sampled_softmax_loss, queries, items, targets, negatives, counted=counted)
        expected = value_and_gradients(
            reference.sampled_softmax_loss, queries, items, targets, negatives, counted=counted
        )
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("kind", ["full", "sampled"])
    def test_where_none_counts_loss_and_gradients_are_zero(self, kind: str) -> None:
        queries, items, targets = problem()
        none = torch.zeros(23, dtype=torch.bool)
        if kind == "full":
            found = value_and_gradients(full_softmax_loss, queries, items, targets, counted=none)
        else:
            found = value_and_gradients(
                sampled_softmax_loss, queries, items, targets, negatives_of(4, 17), counted=none
            )
        assert all(bool((part == 0).all()) for part in found)

    @pytest.mark.parametrize("counted", [torch.ones(5, dtype=torch.bool), torch.ones(23)])
    def test_it_is_a_boolean_a_query(self, counted: Tensor) -> None:
        with pytest.raises(InputError, match="counted must be"):
            full_softmax_loss(*problem(), counted=counted)
