"""The kernels of the memory losses agree with the dense reference in float64, in value and in gradient.

Without a GPU they run in Triton's interpreter, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from longview.errors import InputError
from longview.ops.kernels import why_no_triton
from longview.ops.memory_loss import memory_loss
from longview.ops.memory_loss.path import backend_for
from tests.ops.memory_loss.helpers import (
    DEVICE,
    LOSSES,
    Arguments,
    assert_close,
    exactly,
    options_of,
    problem,
    value_and_gradient,
)
from tests.ops.offline import compiled

needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
every_loss = pytest.mark.parametrize("name", list(LOSSES))


@pytest.fixture(autouse=True)
def made_anew() -> Iterator[None]:
    """What is prepared for a case is made of constants that the tests change."""
    if why_no_triton(DEVICE) is not None:
        yield
        return
    from longview.ops.memory_loss.prepared import prepared_for

    prepared_for.cache_clear()
    yield
    prepared_for.cache_clear()


def assert_as_the_reference(given: Arguments, name: str, **options: Any) -> None:
    found = value_and_gradient(given, loss=LOSSES[name], backend="triton", **options)
    assert_close(found, exactly(given, loss=LOSSES[name], **options), 3e-5, 3e-6)


@every_loss
class TestAgainstTheReference:
    @pytest.mark.parametrize("option", ["plain", "affine, renormalise", "all"])
    def test_options(self, name: str, option: str) -> None:
        # Two blocks of anchors and three tiles, the last of them not full.
        assert_as_the_reference(problem(35, 70, 20), name, **options_of(35, 70, 20)[option])

    @pytest.mark.parametrize("reduction", ["sum", "mean_active", "none"])
    @pytest.mark.parametrize("option", ["plain", "affine, renormalise"])
    def test_reductions(self, name: str, reduction: str, option: str) -> None:
        assert_as_the_reference(problem(5, 40, 16), name, reduction=reduction, **options_of(5, 40, 16)[option])

    @pytest.mark.parametrize(("m", "classes"), [(0, 4), (3, 4), (40, 1), (40, 1000)])
    def test_small_memories_and_anchors_without_positives_or_negatives(self, name: str, m: int, classes: int) -> None:
        assert_as_the_reference(problem(4, m, 16, classes=classes), name)

    def test_bits_repeat(self, name: str) -> None:
        given = problem(5, 40, 16)
        first, *others = (value_and_gradient(given, loss=LOSSES[name], backend="triton") for _ in range(2))
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))

    @needs_gpu
    @pytest.mark.parametrize("width", [64, 100, 128, 256, 512])
    @pytest.mark.parametrize("option", ["plain", "affine, renormalise", "all"])
    def test_bfloat16_products_are_close(self, name: str, width: int, option: str) -> None:
        z, labels, memory, memory_labels = problem(300, 9000, width, classes=900)
        given = z.bfloat16().float(), labels, memory.bfloat16(), memory_labels
        options = options_of(300, 9000, width)[option]
        value, gradient = value_and_gradient(given, loss=LOSSES[name], **options)
        exact_value, exact = exactly(given, loss=LOSSES[name], **options)
        assert_close((value,), (exact_value,), 5e-3)
        if not name.startswith("triplet"):  # rounding may choose another of two nearly equal rows
            assert_close((gradient,), (exact,), 1e-2)

    @needs_gpu
    def test_bits_repeat_in_bfloat16(self, name: str) -> None:
        z, labels, memory, memory_labels = problem(300, 9000, 128, classes=900)
        given = z, labels, memory.bfloat16(), memory_labels
        first, *others = (value_and_gradient(given, loss=LOSSES[name]) for _ in range(10))
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))

    @needs_gpu
    def test_it_can_be_captured_in_a_graph(self, name: str) -> None:
        z, labels, memory, memory_labels = problem(300, 9000, 128, classes=900)
        given = z, labels, memory.bfloat16(), memory_labels
        expected = value_and_gradient(given, loss=LOSSES[name])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = value_and_gradient(given, loss=LOSSES[name])
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_more_blocks_of_anchors_than_bits_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from longview.ops.memory_loss import triton_match

    monkeypatch.setattr(triton_match, "BITS", 2)
    for name in ("contrastive", "supervised-contrastive"):
        assert_as_the_reference(problem(165, 70, 16, classes=60), name)


def test_segments_and_splits_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    from longview.ops.memory_loss import prepared, triton_match

    monkeypatch.setattr(triton_match, "BLOCK", 64)
    monkeypatch.setattr(prepared, "PROCESSORS", 3)
    for name in LOSSES:
        assert_as_the_reference(problem(5, 200, 16), name, **options_of(5, 200, 16)["affine, renormalise"])


@pytest.mark.parametrize("far", [-1, 0])
@pytest.mark.parametrize("name", ["multi-similarity", "info-nce", "supervised-contrastive", "circle"])
def test_exponents_may_grow_or_be_missing_after_the_first_tile(name: str, far: int) -> None:
    z, labels, memory, memory_labels = problem(5, 100, 16)
    memory[:32] *= 0.01
    mask = torch.arange(100, device=DEVICE) >= (32 if far else 0)
    given = z * 40, labels, memory, memory_labels
    found = value_and_gradient(given, loss=LOSSES[name], backend="triton", reference_mask=mask)
    assert all(value.isfinite().all() for value in found)
    assert_close(found, exactly(given, loss=LOSSES[name], reference_mask=mask), 1e-4)


class TestNormsOfRowsAsTheyAreStored:
    """Wide rows are not written out: their similarities are divided."""

    @pytest.fixture(autouse=True)
    def every_row_is_wide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from longview.ops.memory_loss import prepared

        monkeypatch.setattr(prepared, "RAW_WIDTH", 16)

    @every_loss
    @pytest.mark.parametrize("m", [0, 70])
    def test_they_are_as_the_reference(self, name: str, m: int) -> None:
        given, options = problem(35, m, 20), options_of(35, m, 20)
        assert_as_the_reference(given, name, **options["affine, renormalise"])
        assert_as_the_reference(given, name, renormalise=True)
        assert_as_the_reference(given, name, **options["all"])
        assert_as_the_reference(given, name, **options["affine, renormalise"], reduction="mean_active")

    @pytest.mark.parametrize("name", ["multi-similarity", "info-nce", "supervised-contrastive", "circle"])
    @pytest.mark.parametrize("first", [32, 70])
    def test_exponents_may_grow_after_the_first_tile_of_a_slot(self, name: str, first: int) -> None:
        z, labels, memory, memory_labels = problem(5, 200, 16)
        z = z * 30
        memory[:first] -= memory[:first] @ torch.linalg.pinv(z) @ z  # nothing of what the anchors are
        given = z, labels, memory, memory_labels
        found = value_and_gradient(given, loss=LOSSES[name], backend="triton", renormalise=True)
        assert_close(found, exactly(given, loss=LOSSES[name], renormalise=True), 1e-4)


class TestPiecesOfNormalisedRows:
    """A memory whose rows are divided by their norms is held piece by piece."""

    @pytest.fixture(autouse=True)
    def small_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from longview.ops.memory_loss import prepared

        monkeypatch.setattr(prepared, "SEEN_BYTES", 64 * 16 * 4)  # two tiles of the interpreter's, or less
        monkeypatch.setattr(prepared, "PROCESSORS", 2)

    @every_loss
    @pytest.mark.parametrize("m", [0, 64, 65, 300])
    def test_their_sums_are_added(self, name: str, m: int) -> None:
        given, options = problem(5, m, 16), options_of(5, m, 16)
        assert_as_the_reference(given, name, **options["affine, renormalise"])
        assert_as_the_reference(given, name, renormalise=True)
        assert_as_the_reference(given, name, **options["all"])

    @pytest.mark.parametrize("name", ["multi-similarity", "info-nce", "supervised-contrastive", "circle"])
    @pytest.mark.parametrize("first", [0, 32, 150])
    def test_exponents_may_grow_in_any_piece(self, name: str, first: int) -> None:
        z, labels, memory, memory_labels = problem(5, 300, 16)
        z = z * 30
        away = memory[:first] @ torch.linalg.pinv(z) @ z
        memory[:first] -= away  # nothing of what the anchors are
        found = value_and_gradient(
            (z, labels, memory, memory_labels), loss=LOSSES[name], backend="triton", renormalise=True
        )
        assert all(value.isfinite().all() for value in found)
        exact = exactly((z, labels, memory, memory_labels), loss=LOSSES[name], renormalise=True)
        assert_close(found, exact, 1e-4)


@pytest.mark.parametrize("reduction", ["mean_per_anchor", "sum", "mean_active"])
def test_losses_of_many_anchors_are_added(reduction: str) -> None:
    for name in ("contrastive", "triplet"):
        assert_as_the_reference(problem(300, 40, 16, classes=40), name, reduction=reduction)


def test_views_of_tensors_are_taken() -> None:
    z, labels, memory, memory_labels = problem(5, 80, 40)
    assert_as_the_reference((z[:, ::2], labels, memory[::2, ::2], memory_labels[::2]), "contrastive")


@pytest.mark.parametrize("option", ["plain", "affine, renormalise"])
def test_a_row_of_nan_is_not_hidden(option: str) -> None:
    z, labels, memory, memory_labels = problem(5, 40, 16)
    memory[7] = torch.nan
    options = options_of(5, 40, 16)[option]
    for name in LOSSES:
        if not name.startswith("triplet"):
            found = memory_loss(z, labels, memory, memory_labels, loss=LOSSES[name], backend="triton", **options)
            assert found.isnan(), name


def test_what_cannot_run_says_why() -> None:
    z, labels, memory, memory_labels = problem(5, 40, 16)
    options: dict[str, Any] = {"loss": LOSSES["contrastive"], "backend": "triton"}
    with pytest.raises(InputError, match="the reference needs one"):
        memory_loss(z, labels, memory.clone().requires_grad_(), memory_labels, **options)
    with pytest.raises(InputError, match="float64"):
        memory_loss(z.double(), labels, memory.double(), memory_labels, **options)
    wide = torch.cat([z] * 33, 1), labels, torch.cat([memory] * 33, 1), memory_labels
    with pytest.raises(InputError, match="up to 512 values, got 528"):
        memory_loss(*wide, **options)


def test_kernels_are_taken_on_a_gpu_with_a_small_memory() -> None:
    z, _, memory, _ = problem(5, 40, 16)
    assert backend_for(z.cpu(), memory.cpu().bfloat16(), None) == "blocked"
    if DEVICE == "cuda":
        assert backend_for(z, memory.bfloat16(), None) == "triton"
        assert backend_for(z, memory, None) == "reference"
        assert backend_for(z, memory.repeat(1 << 14, 1), None) == "blocked"


WALKS = [
    *("margin negative", "power negative", "power all", "circle negative", "best negative"),
    *("margin positive", "power positive", "pull positive", "mean positive", "circle positive", "best positive"),
]
OTHERS = ["finish", "match", "anchors"]
OF_NORMS = ["view, copy", "view, piece, walk", "view, raw, walk"]


@pytest.mark.parametrize("view", ["", "view, "])
class TestCompiledForHopper:
    """Part by part, so that workers share the work."""

    @pytest.mark.slow
    @pytest.mark.parametrize("form", WALKS)
    def test_walks_use_tensor_cores_and_spill_nothing(self, view: str, form: str) -> None:
        for row in compiled("longview.ops.memory_loss.triton_shipped", f"{view}walk {form}"):
            assert row["stack"] == 0, row
            assert row["wgmma"] > 0, row

    @pytest.mark.slow
    @pytest.mark.parametrize("kernel", OTHERS)
    def test_other_kernels_spill_nothing(self, view: str, kernel: str) -> None:
        for row in compiled("longview.ops.memory_loss.triton_shipped", f"{view}{kernel}"):
            assert row["stack"] == 0, row

    def test_all_have_a_part(self, view: str) -> None:
        from longview.ops.memory_loss.triton_shipped import shipped

        names = [name for name, *_ in shipped() if name.startswith("view") == bool(view)]
        parts = tuple(f"{view}{part}" for part in (*(f"walk {form}" for form in WALKS), *OTHERS))
        assert [name for name in names if not name.startswith((*parts, *OF_NORMS))] == []


@pytest.mark.slow
@pytest.mark.parametrize("kernel", OF_NORMS)
def test_kernels_of_normalised_rows_compile_for_hopper_and_spill_nothing(kernel: str) -> None:
    for row in compiled("longview.ops.memory_loss.triton_shipped", kernel):
        assert row["stack"] == 0, row
        assert row["wgmma"] > 0 or "walk" not in kernel, row
