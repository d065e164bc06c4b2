"""The losses over batch × memory: tiles of plain torch equal the dense reference; what does not fit is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from longview.errors import InputError
from longview.ops.memory_loss import (
    PAIR_LOSSES,
    CircleLoss,
    ContrastiveLoss,
    InfoNCELoss,
    PairLoss,
    memory_loss,
    reference,
)
from longview.ops.memory_loss.blocked import BlockedMemoryLoss
from longview.ops.memory_loss.pairs import Pairs, View
from tests.ops.memory_loss.helpers import (
    DEVICE,
    LOSSES,
    Arguments,
    assert_close,
    double,
    exactly,
    options_of,
    problem,
    value_and_gradient,
)

every_loss = pytest.mark.parametrize("name", list(LOSSES))
no_circle = pytest.mark.parametrize("name", [name for name in LOSSES if name != "circle"])


def in_tiles(given: Arguments, name: str, tile: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the losses of the anchors and the gradient of their sum, by tiles of `tile` rows."""
    embeddings = given[0].detach().requires_grad_()
    scale, shift = options.pop("affine", (None, None))
    view = View(scale, shift, options.pop("renormalise", False))
    pairs = Pairs(given[1], given[3], **options)
    losses = BlockedMemoryLoss.apply(embeddings, given[2], pairs, LOSSES[name], view, False, tile)
    (gradient,) = torch.autograd.grad(losses.sum(), embeddings)
    return losses.detach(), gradient


class TestReference:
    @no_circle
    def test_gradients_are_those_of_finite_differences(self, name: str) -> None:
        z, labels, memory, memory_labels = double(problem(4, 9, 5))

        def loss(z: Tensor, memory: Tensor) -> Tensor:
            return memory_loss(z, labels, memory, memory_labels, loss=LOSSES[name], backend="reference")

        assert torch.autograd.gradcheck(loss, (z.requires_grad_(), memory.requires_grad_()))

    def test_the_weights_of_the_circle_loss_carry_no_gradient(self) -> None:
        z, labels, memory, memory_labels = double(problem(3, 7, 5))
        loss = CircleLoss(margin=0.3, gamma=2.0)
        z.requires_grad_()
        with torch.no_grad():
            s_bm = z @ memory.mT
            push_bm, pull_bm = (s_bm + 0.3).clamp(min=0), (1.3 - s_bm).clamp(min=0)

        def frozen(z: Tensor) -> Tensor:
            s_bm = z @ memory.mT
            same = labels[:, None] == memory_labels[None, :]
            pushed = (2 * push_bm * (s_bm - 0.3)).exp().where(~same, 0.0).sum(1)
            pulled = (-2 * pull_bm * (s_bm - 0.7)).exp().where(same, 0.0).sum(1)
            return (pushed * pulled).log1p().mean()

        value = memory_loss(z, labels, memory, memory_labels, loss=loss, backend="reference")
        assert value.item() == pytest.approx(frozen(z).item())
        grads = [torch.autograd.grad(f, z)[0] for f in (value, frozen(z))]
        torch.testing.assert_close(*grads)

    def test_by_hand(self) -> None:
        z, memory = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
        labels, memory_labels = torch.tensor([5]), torch.tensor([5, 9, 9])
        expected = {  # similarities: positive 0.6; negatives 0.8 and 0
            "contrastive": (1 - 0.6) + (0.8 - 0.5),
            "triplet": 0 - 0.6 + 0.1,
            "multi-similarity": torch.tensor(-0.2).exp().log1p() / 2 + torch.tensor([15.0, -25, 0]).logsumexp(0) / 50,
            "info-nce": -(torch.tensor(0.6 / 0.07) - torch.tensor([0.6, 0.8, 0.0]).div(0.07).logsumexp(0)),
            "supervised-contrastive": -(torch.tensor(6.0) - torch.tensor([6.0, 8.0, 0.0]).logsumexp(0)),
            "circle": torch.nn.functional.softplus(
                torch.tensor([80 * 1.2 * 0.4, 80 * 0.4 * -0.4]).logsumexp(0) - 80 * 0.8 * 0.0
            ),
        }
        for name, kind in PAIR_LOSSES.items():
            value = memory_loss(z, labels, memory, memory_labels, loss=kind(), backend="reference")
            assert value.item() == pytest.approx(max(0.0, float(expected[name])), rel=1e-5), name


@every_loss
class TestTiles:
    def test_equal_the_reference_with_every_option(self, name: str) -> None:
        given = problem(9, 40, 6)
        for options in options_of(9, 40, 6).values():
            expected = exactly(given, loss=LOSSES[name], reduction="none", **options)
            assert_close(in_tiles(double(given), name, 7, **double_options(options)), expected, 1e-10, 1e-12)
            assert_close(in_tiles(given, name, 7, **options), expected, 3e-5, 3e-6)

    @pytest.mark.parametrize("reduction", ["mean_per_anchor", "sum", "mean_active", "none"])
    def test_reductions_equal_the_reference(self, name: str, reduction: Any) -> None:
        given = double(problem(9, 40, 6))
        options: dict[str, Any] = {"loss": LOSSES[name], "reduction": reduction}
        assert_close(value_and_gradient(given, **options), exactly(given, **options), 1e-10, 1e-12)

    @pytest.mark.parametrize("classes", [1, 1000])
    def test_anchors_may_lack_negatives_or_positives(self, name: str, classes: int) -> None:
        given = problem(6, 20, 5, classes=classes)
        found = value_and_gradient(given, loss=LOSSES[name])
        assert all(value.isfinite().all() for value in found)
        assert_close(found, exactly(given, loss=LOSSES[name]), 3e-5)

    def test_an_empty_memory_costs_nothing(self, name: str) -> None:
        z, labels, memory, memory_labels = problem(6, 20, 5)
        value, gradient = value_and_gradient((z, labels, memory[:0], memory_labels[:0]), loss=LOSSES[name])
        assert value.item() == 0
        assert not gradient.any()

    def test_a_row_that_is_left_out_changes_nothing(self, name: str) -> None:
        z, labels, memory, memory_labels = problem(6, 20, 5)
        ids = torch.arange(20, device=DEVICE)
        ways: list[tuple[int, dict[str, Any]]] = [
            (3, {"reference_mask": ids != 3}),
            (4, {"own_ids": torch.full_like(labels, 4), "reference_ids": ids}),
            (5, {"own_positions": torch.full_like(labels, 5)}),
        ]
        for row, options in ways:
            moved = memory.clone()
            moved[row] = -moved[row].roll(1)
            once, again = (
                value_and_gradient((z, labels, x, memory_labels), loss=LOSSES[name], **options) for x in (memory, moved)
            )
            assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))

    def test_a_batch_against_itself_gets_both_gradients(self, name: str) -> None:
        z, labels, *_ = double(problem(12, 1, 5))
        own = torch.arange(12, device=DEVICE)
        grads = []
        for backend in ("blocked", "reference"):
            x = z.detach().requires_grad_()
            memory_loss(x, labels, x, labels, loss=LOSSES[name], own_positions=own, backend=backend).backward()
            grads.append(x.grad)
        torch.testing.assert_close(*grads)

    def test_an_order_of_the_memory_is_as_good_as_another(self, name: str) -> None:
        z, labels, memory, memory_labels = given = problem(6, 50, 5)
        order = torch.randperm(50, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        found = in_tiles((z, labels, memory[order], memory_labels[order]), name, 16)
        assert_close(found, in_tiles(given, name, 16), 1e-5)

    def test_a_half_precision_memory_is_read_as_it_is(self, name: str) -> None:
        z, labels, memory, memory_labels = problem(6, 50, 5)
        small = memory.bfloat16()
        found = value_and_gradient((z, labels, small, memory_labels), loss=LOSSES[name])
        expected = exactly((z, labels, small.float(), memory_labels), loss=LOSSES[name])
        assert_close(found, expected, 2e-2)  # weights, and values far from a margin or maximum, have two bytes too

    def test_labels_are_told_apart_by_all_their_bits(self, name: str) -> None:
        z, labels, memory, memory_labels = problem(9, 40, 6)
        for shift in (58, 48, 0):  # small numbers, of either sign, to numbers that end in the same bits
            given = (z, labels >> shift, memory, memory_labels >> shift)
            assert_close(value_and_gradient(given, loss=LOSSES[name]), exactly(given, loss=LOSSES[name]), 3e-5, 3e-6)

    def test_nan_is_not_hidden(self, name: str) -> None:
        z, labels, memory, memory_labels = problem(6, 20, 5, classes=2)
        z[2, 1] = torch.nan
        assert memory_loss(z, labels, memory, memory_labels, loss=LOSSES[name]).isnan()


def double_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: double(value) for name, value in options.items()}


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 40), seed=st.integers(0, 100))
def test_the_contrastive_loss_of_two_halves_of_the_memory_adds_up(cut: int, seed: int) -> None:
    z, labels, memory, memory_labels = double(problem(7, 40, 5, seed=seed))
    whole = value_and_gradient((z, labels, memory, memory_labels), loss=ContrastiveLoss(), reduction="sum")
    parts = [
        value_and_gradient((z, labels, memory[part], memory_labels[part]), loss=ContrastiveLoss(), reduction="sum")
        for part in (slice(cut), slice(cut, None))
    ]
    for total, (first, second) in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(total, first + second)


@settings(max_examples=25, deadline=None)
@given(
    b=st.integers(1, 9), m=st.integers(0, 30), d=st.integers(1, 9), tile=st.integers(1, 40),
    classes=st.integers(1, 6), name=st.sampled_from(list(LOSSES)), seed=st.integers(0, 100),
)  # fmt: skip
def test_any_shape_in_any_tiles_equals_the_reference(
    b: int, m: int, d: int, tile: int, classes: int, name: str, seed: int
) -> None:
    given = double(problem(b, m, d, classes=classes, seed=seed))
    expected = exactly(given, loss=LOSSES[name], reduction="none")
    assert_close(in_tiles(given, name, tile), expected, 1e-9, 1e-12)


def test_powers_that_float32_cannot_hold_are_no_trouble() -> None:
    given = problem(6, 50, 5)
    for name in ("multi-similarity", "info-nce", "supervised-contrastive", "circle"):
        loud = (given[0] * 60, *given[1:])
        found, expected = in_tiles(loud, name, 16), exactly(loud, loss=LOSSES[name], reduction="none")
        assert all(value.isfinite().all() for value in found)
        assert_close(found, expected, 1e-4)


def test_moment_matching_is_the_loss_on_rewritten_rows() -> None:
    z, labels, memory, memory_labels = double(problem(6, 50, 5))
    scale, shift = double(options_of(6, 50, 5)["affine"]["affine"])
    for name, loss in LOSSES.items():
        seen = memory * scale + shift
        for renormalise in (False, True):
            rows = torch.nn.functional.normalize(seen, dim=1) if renormalise else seen
            found = value_and_gradient(
                (z, labels, memory, memory_labels), loss=loss, affine=(scale, shift), renormalise=renormalise
            )
            expected = value_and_gradient((z, labels, rows, memory_labels), loss=loss)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, msg=name)


class TestFewPairsOverTheMargin:
    """On a CPU, rows of a tile that no anchor is too similar to are left out of what follows."""

    def few(self) -> Arguments:
        z, labels, memory, memory_labels = problem(6, 50, 64, classes=1000)
        memory[[3, 4, 31]] = functional.normalize(z[[0, 2, 5]] + 0.05, dim=1)
        return z, labels, memory, memory_labels

    def test_equal_the_reference_with_every_option(self) -> None:
        given, loss = self.few(), LOSSES["contrastive"].model_copy(update={"negative_margin": 0.6})
        options = options_of(6, 50, 64) | {
            "raised": {"affine": (torch.ones(64, device=DEVICE), torch.full((64,), 0.01, device=DEVICE))}
        }
        for chosen in options.values():
            found = value_and_gradient(double(given), loss=loss, **double_options(chosen))
            assert found[0] > 0
            assert_close(found, exactly(given, loss=loss, **chosen), 1e-10, 1e-12)

    def test_nan_is_not_overlooked(self) -> None:
        z, labels, memory, memory_labels = self.few()
        memory[9, 1] = torch.nan
        value, gradient = value_and_gradient((z, labels, memory, memory_labels), loss=ContrastiveLoss())
        assert value.isnan()
        assert gradient[:, 1].isnan().all()


class TestRefused:
    def assert_refused(self, match: str, **changed: Any) -> None:
        z, labels, memory, memory_labels = problem(4, 6, 5)
        given = {"embeddings": z, "labels": labels, "reference": memory, "reference_labels": memory_labels}
        with pytest.raises(InputError, match=match):
            memory_loss(**{**given, "loss": ContrastiveLoss(), **changed})

    def test_shapes_and_dtypes_that_do_not_fit(self) -> None:
        self.assert_refused(
            r"embeddings \(b, d\) and reference \(m, d\) expected, got .*\(4, 3\)", embeddings=torch.ones(4, 3)
        )
        self.assert_refused(r"labels must be \(4,\) int64, got \(4,\) int32", labels=torch.ones(4, dtype=torch.int32))
        self.assert_refused(r"reference_labels must be \(6,\) int64", reference_labels=torch.ones(5, dtype=torch.int64))
        self.assert_refused("must be floating point", reference=torch.ones(6, 5, dtype=torch.int64))
        self.assert_refused(
            r"affine shift must be \(5,\)", affine=(torch.ones(5, device=DEVICE), torch.ones(4, device=DEVICE))
        )
        self.assert_refused(
            "at least one embedding", embeddings=torch.ones(0, 5), labels=torch.ones(0, dtype=torch.int64)
        )

    def test_settings_that_do_not_fit(self) -> None:
        self.assert_refused("own_ids and reference_ids go together", own_ids=torch.arange(4, device=DEVICE))
        self.assert_refused("reduction must be one of", reduction="mean")
        self.assert_refused("backend must be one of", backend="cuda")
        self.assert_refused("loss must be one of ContrastiveLoss", loss="contrastive")
        self.assert_refused(
            "gradient only as it is", reference=torch.ones(6, 5, device=DEVICE).requires_grad_(), renormalise=True
        )

    def test_what_is_not_finite_where_asked(self) -> None:
        memory = torch.ones(6, 5, device=DEVICE)
        memory[4, 2] = torch.inf
        self.assert_refused(
            "reference must be finite: 1 of 6 rows are not, first row 4", reference=memory, check_finite=True
        )
        self.assert_refused("embeddings must be finite", embeddings=memory[:4] * torch.nan, check_finite=True)

    def test_a_second_derivative(self) -> None:
        z, *rest = problem(4, 6, 5)
        z.requires_grad_()
        value = memory_loss(z, *rest, loss=ContrastiveLoss(), backend="blocked")
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(value, z, create_graph=True)


@pytest.mark.parametrize("own", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float64])
@every_loss
def test_tiles_and_dense_products_take_two_dtypes_alike(name: str, stored: torch.dtype, own: torch.dtype) -> None:
    z, labels, memory, memory_labels = problem(6, 40, 8)
    options = options_of(6, 40, 8)["affine, renormalise"] | {"loss": LOSSES[name]}
    given = z.to(own), labels, memory.to(stored), memory_labels
    dense, tiles = (value_and_gradient(given, backend=backend, **options) for backend in ("reference", "blocked"))
    assert [x.dtype for x in dense] == [x.dtype for x in tiles]
    # Similarities of a bfloat16 memory may be rounded to its dtype, as its products are.
    bound = 2e-2 if torch.bfloat16 in (own, stored) else 3e-5
    assert_close(dense, tuple(x.double() for x in tiles), bound, bound)


def test_without_gradients_none_is_made() -> None:
    given = problem(4, 6, 5)
    for name, loss in LOSSES.items():
        value = memory_loss(*given, loss=loss)
        assert not value.requires_grad
        assert_close((value,), exactly(given, loss=loss)[:1], 1e-5)
        assert name


def test_the_reference_says_which_pairs_count() -> None:
    labels = torch.tensor([1, 2])
    own, mask = torch.tensor([0, -1]), torch.tensor([True, True, True, False])
    pairs = Pairs(labels, torch.tensor([1, 1, 2, 2]), own_positions=own, reference_mask=mask)
    positive, negative = reference.masks(pairs)
    assert positive.int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert negative.int().tolist() == [[0, 0, 1, 0], [1, 1, 0, 0]]


class TestPowersWithOnePass:
    """On a CPU the largest exponent is guessed from some rows; where the guess is poor the walk is done again."""

    @pytest.mark.skipif(DEVICE != "cpu", reason="a GPU is not asked how it went")
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("loss", [InfoNCELoss(temperature=0.04), CircleLoss(gamma=80)])
    def test_a_row_that_the_guess_did_not_see_may_exceed_it_by_far(self, loss: PairLoss, dtype: torch.dtype) -> None:
        given = problem(4, 5000, 16, classes=1000)
        z, labels, memory, memory_labels = given
        # Every row but one is the opposite of every anchor: exponents of -25 or 0, and one of 25 or 75.
        z, other = functional.normalize(z[:1] + 0.01 * z, dim=1), memory[17]
        memory = (-z[:1]).repeat(5000, 1)
        memory[4325], memory[17] = z[0], other
        memory_labels = torch.full_like(memory_labels, -5)
        memory_labels[17] = labels[0]
        memory = memory.to(dtype)
        found = value_and_gradient((z, labels, memory, memory_labels), loss=loss)
        expected = exactly((z, labels, memory.float(), memory_labels), loss=loss)
        assert all(value.isfinite().all() for value in found)
        assert_close(found, expected, 1e-4 if dtype == torch.float32 else 2e-2)

    @pytest.mark.parametrize("name", list(LOSSES))
    def test_a_large_half_precision_memory_is_close(self, name: str) -> None:
        z, labels, memory, memory_labels = problem(40, 3000, 64, classes=50)
        small = memory.bfloat16()
        found = value_and_gradient((z, labels, small, memory_labels), loss=LOSSES[name])
        expected = exactly((z, labels, small.float(), memory_labels), loss=LOSSES[name])
        # The kernels round anchors, too, and rounding may choose another of two nearly equal rows.
        parts = 1 if DEVICE != "cpu" and name.startswith("triplet") else 2
        assert_close(found[:parts], expected[:parts], 2e-2)

    def test_a_memory_that_begins_anywhere_gives_the_same_bits(self) -> None:
        z, labels, memory, memory_labels = problem(6, 40, 5)
        place = torch.empty(40 * 5 + 1, device=DEVICE)
        shifted = place[1:].view(40, 5).copy_(memory)
        for loss in LOSSES.values():
            one, other = (
                value_and_gradient((z, labels, x, memory_labels), loss=loss) for x in (memory.clone(), shifted)
            )
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
