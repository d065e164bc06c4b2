"""The kernels of the softmax losses agree with the dense reference in float64, in value and in gradient.

Without a GPU they run in Triton's interpreter, in float32.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longview.errors import InputError
from longview.ops.softmax_loss import full_softmax_loss, reference, sampled_softmax_loss
from longview.ops.softmax_loss.path import path_for
from longview.ops.softmax_loss.triton_tile import Tile
from tests.ops.offline import compiled

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
Loss = Any


def problem(n: int, num_items: int, width: int, *, scale: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(n, width, generator=generator) * scale
    items = torch.randn(num_items, width, generator=generator)
    targets = torch.randint(num_items, (n,), generator=generator)
    return queries.to(DEVICE), items.to(DEVICE), targets.to(DEVICE)


def sample_of(
    num_items: int, shape: tuple[int, ...], targets: Tensor, corrected: bool
) -> tuple[Tensor, dict[str, Any]]:
    """Return negatives, among them some that are targets, and where `corrected` the arguments of the correction."""
    negatives = torch.randint(num_items, shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    log_q = torch.linspace(-3, -1, num_items, device=DEVICE)
    return negatives, {"negative_log_q": log_q[negatives], "target_log_q": log_q[targets]} if corrected else {}


def value_and_gradients(loss: Loss, queries: Tensor, items: Tensor, *rest: Any, **options: Any) -> list[Tensor]:
    queries, items = queries.detach().requires_grad_(), items.detach().requires_grad_()
    value = loss(queries, items, *rest, **options)
    return [value.detach(), *torch.autograd.grad(value, (queries, items))]


def assert_close(found: list[Tensor], expected: list[Tensor], allowed: float = 1e-5, least: float = 1e-6) -> None:
    """`allowed` is relative to the norm; what is exactly zero may be off by `least`, the last digit of a logit."""
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b).norm() <= allowed * b.norm() + least


def double(*values: Any) -> list[Any]:
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


@pytest.mark.parametrize("path", ["triton", "triton-blocked"])
class TestFull:
    @pytest.mark.parametrize("width", [20, 64])
    @pytest.mark.parametrize("num_items", [1, 5, 1000])
    @pytest.mark.parametrize("n", [1, 7, 130])
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_any_shape_equals_the_reference(
        self, path: Any, n: int, num_items: int, width: int, smoothing: float
    ) -> None:
        queries, items, targets = problem(n, num_items, width)
        options = {"temperature": 0.7, "label_smoothing": smoothing}
        found = value_and_gradients(full_softmax_loss, queries, items, targets, path=path, **options)
        expected = value_and_gradients(reference.full_softmax_loss, *double(queries, items), targets, **options)
        assert_close(found, expected)

    def test_targets_in_every_tile_of_items(self, path: Any) -> None:
        queries, items, _ = problem(40, 200, 20)
        targets = torch.arange(0, 200, 5, device=DEVICE)
        found = value_and_gradients(full_softmax_loss, queries, items, targets, path=path)
        assert_close(found, value_and_gradients(reference.full_softmax_loss, *double(queries, items), targets))

    @pytest.mark.parametrize("offset", [80.0, -80.0])
    def test_large_logits_are_stable(self, path: Any, offset: float) -> None:
        queries, items, targets = problem(9, 300, 20)
        queries[:, 0], items[:, 0] = offset, 1.0 + items[:, 0] / 100
        found = value_and_gradients(full_softmax_loss, queries, items, targets, path=path)
        expected = value_and_gradients(reference.full_softmax_loss, *double(queries, items), targets)
        assert_close(found, expected, 2e-5)

    @pytest.mark.parametrize("best", [True, False])
    def test_certain_predictions_lose_no_digits(self, path: Any, best: bool) -> None:
        items = torch.eye(20, device=DEVICE)
        queries, targets = items[:6] * 160, torch.arange(6, device=DEVICE) + (0 if best else 6)
        found = value_and_gradients(full_softmax_loss, queries, items, targets, path=path)
        assert all(value.isfinite().all() for value in found)
        expected = value_and_gradients(reference.full_softmax_loss, *double(queries, items), targets)
        # On a GPU the last digit of a logit of 160, 1.5e-5, is lost, and queries of that length multiply it.
        assert_close(found, expected, least=3e-4 if DEVICE == "cuda" else 1e-6)

    def test_a_target_outside_the_catalogue_is_not_hidden(self, path: Any) -> None:
        queries, items, targets = problem(9, 30, 20)
        targets[4] = 30
        assert full_softmax_loss(queries, items, targets, path=path).isnan()

    def test_rows_that_do_not_count_add_nothing(self, path: Any) -> None:
        queries, items, targets = problem(50, 40, 20)
        options = {"counted": torch.arange(50, device=DEVICE) < 33, "label_smoothing": 0.1}
        found = value_and_gradients(full_softmax_loss, queries, items, targets, path=path, **options)
        expected = value_and_gradients(reference.full_softmax_loss, *double(queries, items), targets, **options)
        assert_close(found, expected)
        assert not found[1][33:].any()

    def test_rows_and_columns_may_be_views(self, path: Any) -> None:
        queries, items, targets = problem(9, 30, 40)
        found = value_and_gradients(full_softmax_loss, queries[:, ::2], items[:, ::2], targets, path=path)
        halves = double(queries[:, ::2], items[:, ::2])
        assert_close(found, value_and_gradients(reference.full_softmax_loss, *halves, targets))


class TestBlocksOfWeights:
    """What is particular to the kernels that leave two products to the library."""

    @pytest.mark.parametrize("num_items", [33, 200])
    @pytest.mark.parametrize("width", [100, 130])
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_many_blocks_and_pieces_are_one(
        self, monkeypatch: pytest.MonkeyPatch, num_items: int, width: int, smoothing: float
    ) -> None:
        from longview.ops.softmax_loss import fused_blocks, triton_blocks

        tile = Tile(16, 32, 4, 1)
        monkeypatch.setattr(fused_blocks, "TOPS", 1)
        monkeypatch.setattr(triton_blocks, "AT_ONCE", 2)
        queries, items, targets = problem(50, num_items, width)
        setup = fused_blocks.Setup((tile, tile), weights=1)

        def loss(q: Tensor, x: Tensor) -> Tensor:
            found: Tensor = fused_blocks.BlockedFullSoftmaxLoss.apply(q, x, targets, 0.7, smoothing, setup)
            return found

        options = {"temperature": 0.7, "label_smoothing": smoothing}
        expected = value_and_gradients(reference.full_softmax_loss, *double(queries, items), targets, **options)
        assert_close(value_and_gradients(loss, queries, items), expected)

    def test_blocks_cover_the_catalogue_evenly(self) -> None:
        from longview.ops.softmax_loss import fused_blocks

        queries, items, targets = problem(50, 1000, 20)
        for weights, sizes in ((1, [64] * 15 + [40]), (50 * 500, [384, 384, 232]), (1 << 20, [1000])):
            setup = fused_blocks.Setup((Tile(16, 64, 4, 1),) * 2, weights)
            size = fused_blocks._Problem(queries, items, targets, 1.0, 0.0, setup)._block_size()
            assert [min(size, 1000 - start) for start in range(0, 1000, size)] == sizes

    def test_vectors_may_be_wider_than_a_program_holds(self) -> None:
        queries, items, targets = problem(9, 40, 600, scale=0.05)
        found = value_and_gradients(full_softmax_loss, queries, items, targets, path="triton-blocked")
        assert_close(found, value_and_gradients(reference.full_softmax_loss, *double(queries, items), targets))

    def test_the_sampled_softmax_has_no_such_form(self) -> None:
        loss, given = arguments("sampled")
        with pytest.raises(InputError, match="a form of the full softmax"):
            loss(*given, path="triton-blocked")

    @needs_gpu
    def test_it_is_taken_for_wide_vectors(self) -> None:
        queries, items, _ = (t.bfloat16() for t in problem(9, 40, 512))
        assert path_for("full", queries, items, None, None) == "triton-blocked"
        assert path_for("full", queries[:, :256], items[:, :256], None, None) == "triton"
        assert path_for("full", queries.float(), items.float(), None, None) == "blocked"
        assert path_for("sampled", queries, items, None, None) == "triton"


class TestSampled:
    @pytest.mark.parametrize("width", [20, 64])
    @pytest.mark.parametrize(
        ("n", "shape"), [(1, (1,)), (7, (5,)), (130, (3, 40)), (25, (4, 70)), (5, (4, 3))], ids=str
    )
    @pytest.mark.parametrize("corrected", [False, True])
    @pytest.mark.parametrize("sparse", [False, True])
    def test_any_shape_equals_the_reference(
        self, n: int, shape: tuple[int, ...], width: int, corrected: bool, sparse: bool
    ) -> None:
        queries, items, targets = problem(n, 50, width)
        negatives, options = sample_of(50, shape, targets, corrected)
        found = value_and_gradients(
            sampled_softmax_loss, queries, items, targets, negatives, path="triton", sparse=sparse, **options
        )
        assert found[2].is_sparse == sparse
        found[2] = found[2].to_dense()
        wide = dict(zip(options, double(*options.values()), strict=True))
        expected = value_and_gradients(
            reference.sampled_softmax_loss, *double(queries, items), targets, negatives, **wide
        )
        assert_close(found, expected)

    @pytest.mark.parametrize("sparse", [False, True])
    def test_rows_that_do_not_count_add_nothing(self, sparse: bool) -> None:
        queries, items, targets = problem(50, 40, 20)
        negatives, options = sample_of(40, (4, 30), targets, corrected=True)
        counted = torch.arange(50, device=DEVICE) < 33
        found = value_and_gradients(
            sampled_softmax_loss, queries, items, targets, negatives, path="triton", sparse=sparse, counted=counted,
            **options,
        )  # fmt: skip
        wide = dict(zip(options, double(*options.values()), strict=True)) | {"counted": counted}
        expected = value_and_gradients(
            reference.sampled_softmax_loss, *double(queries, items), targets, negatives, **wide
        )
        assert_close([found[0], found[1], found[2].to_dense()], expected)
        assert not found[1][33:].any()

    def test_a_row_may_have_no_negative_left(self) -> None:
        queries, items, targets = problem(3, 9, 20)
        negatives = targets[:1].expand(4)
        loss = sampled_softmax_loss(queries[:1], items, targets[:1], negatives, path="triton")
        assert loss.item() == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize("offset", [80.0, -80.0])
    def test_large_logits_are_stable(self, offset: float) -> None:
        queries, items, targets = problem(9, 300, 20)
        queries[:, 0], items[:, 0] = offset, 1.0 + items[:, 0] / 100
        negatives, _ = sample_of(300, (2, 40), targets, False)
        found = value_and_gradients(sampled_softmax_loss, queries, items, targets, negatives, path="triton")
        expected = value_and_gradients(reference.sampled_softmax_loss, *double(queries, items), targets, negatives)
        assert_close(found, expected, 2e-5)

    def test_what_is_left_beside_an_almost_certain_target_keeps_its_digits(self) -> None:
        items = torch.eye(20, device=DEVICE)
        queries, targets, negatives = items[:6] * 25, torch.arange(6, device=DEVICE), torch.arange(20, device=DEVICE)
        found = value_and_gradients(sampled_softmax_loss, queries, items, targets, negatives, path="triton")
        expected = value_and_gradients(reference.sampled_softmax_loss, *double(queries, items), targets, negatives)
        assert_close(found[1:], expected[1:], least=0)

    def test_the_blocked_path_makes_the_same_sparse_gradient(self) -> None:
        queries, items, targets = problem(30, 50, 20)
        negatives, _ = sample_of(50, (2, 8), targets, False)
        dense, sparse = (
            value_and_gradients(sampled_softmax_loss, queries, items, targets, negatives, path="blocked", sparse=s)[2]
            for s in (False, True)
        )
        torch.testing.assert_close(sparse.to_dense(), dense)


def arguments(kind: str, n: int = 60, num_items: int = 90, width: int = 20) -> tuple[Loss, tuple[Tensor, ...]]:
    queries, items, targets = problem(n, num_items, width)
    if kind == "full":
        return full_softmax_loss, (queries, items, targets)
    return sampled_softmax_loss, (queries, items, targets, sample_of(num_items, (3, 24), targets, False)[0])


@pytest.mark.parametrize(("kind", "path"), [("full", "triton"), ("full", "triton-blocked"), ("sampled", "triton")])
class TestBoth:
    def test_bits_repeat(self, kind: str, path: Any) -> None:
        loss, given = arguments(kind)
        first, second = (value_and_gradients(loss, *given, path=path) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_only_what_needs_a_gradient_gets_one(self, kind: str, path: Any) -> None:
        loss, (queries, items, *rest) = arguments(kind)
        expected = value_and_gradients(loss, queries, items, *rest, path=path)
        for index in (0, 1):
            given = [queries.clone(), items.clone()]
            given[index].requires_grad_()
            loss(*given, *rest, path=path).backward()
            torch.testing.assert_close(given[index].grad, expected[1 + index])
            assert given[1 - index].grad is None
        with torch.no_grad():
            torch.testing.assert_close(loss(queries, items, *rest, path=path), expected[0])

    def test_the_incoming_gradient_scales(self, kind: str, path: Any) -> None:
        loss, given = arguments(kind)
        once = value_and_gradients(loss, *given, path=path)
        thrice = value_and_gradients(lambda *a, **o: 3 * loss(*a, **o), *given, path=path)
        for a, b in zip(thrice, once, strict=True):
            torch.testing.assert_close(a, 3 * b)

    def test_nan_is_not_hidden(self, kind: str, path: Any) -> None:
        loss, given = arguments(kind)
        given[0][3, 1] = float("nan")
        assert loss(*given, path=path).isnan()

    def test_a_second_derivative_is_refused(self, kind: str, path: Any) -> None:
        loss, (queries, *rest) = arguments(kind)
        queries.requires_grad_()
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(loss(queries, *rest, path=path), queries, create_graph=True)

    def test_a_path_that_cannot_run_says_why(self, kind: str, path: Any) -> None:
        loss, given = arguments(kind)
        with pytest.raises(InputError, match="block sets"):
            loss(*given, path=path, block=4)
        with pytest.raises(InputError, match="float64"):
            loss(*double(*given), path=path)
        with pytest.raises(InputError, match="one of 'blocked', 'triton'"):
            loss(*given, path="cuda")
        if path == "triton-blocked":
            return
        wide = [torch.cat([given[0]] * 26, 1), torch.cat([given[1]] * 26, 1), *given[2:]]
        with pytest.raises(InputError, match="up to 512 values, got 520"):
            loss(*wide, path=path)

    def test_a_cpu_keeps_its_blocks(self, kind: str, path: Any) -> None:
        loss, given = arguments(kind)
        given = tuple(tensor.cpu() for tensor in given)
        default, blocked = value_and_gradients(loss, *given), value_and_gradients(loss, *given, path="blocked")
        assert all(torch.equal(a, b) for a, b in zip(default, blocked, strict=True))

    @needs_gpu
    @pytest.mark.parametrize("width", [20, 64, 128, 256, 512])
    def test_bfloat16_products_are_as_close_as_those_of_the_blocks(self, kind: str, path: Any, width: int) -> None:
        loss, given = arguments(kind, 700, 3000, width)
        exact = value_and_gradients(getattr(reference, loss.__name__), *double(*given))
        with torch.autocast("cuda", torch.bfloat16):
            found = value_and_gradients(loss, *given, path=path)
            blocked = value_and_gradients(loss, *given, path="blocked")
        for a, b, c in zip(found, blocked, exact, strict=True):
            assert (a.double() - c).norm() <= 1.5 * (b.double() - c).norm() + 8e-3 * c.norm()

    @needs_gpu
    def test_bits_repeat_in_bfloat16(self, kind: str, path: Any) -> None:
        loss, given = arguments(kind, 700, 3000, 128)
        given = tuple(t.bfloat16() if t.is_floating_point() else t for t in given)
        first, *others = (value_and_gradients(loss, *given, path=path) for _ in range(5))
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))

    @pytest.mark.slow
    def test_shipped_kernels_use_tensor_cores_and_spill_nothing(self, kind: str, path: Any) -> None:
        name = "blocks" if path == "triton-blocked" else kind
        for row in compiled(f"longview.ops.softmax_loss.triton_{name}"):
            assert row["stack"] == 0, row
            assert row["wgmma"] > 0, row
