"""The Triton kernels against the definition: compiled on a GPU, in Triton's interpreter (float32) elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from longview.ops.attention import MaskSpec, RelativeBias, newest_rows_attention, semi_local_attention
from longview.ops.attention.triton_tuning import Blocks, ChosenBlocks
from tests.ops.attention.conftest import MASKS
from tests.ops.attention.helpers import Case, case, relative_errors
from tests.ops.offline import compiled

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = pytest.mark.skipif(DEVICE == "cpu", reason="bfloat16 and float16 kernels run on a GPU only")
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=GPU), pytest.param(torch.float16, marks=GPU)]
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3}

# Context, history and targets of every size around the blocks of 16 rows and keys.
LENGTHS = [(0, 0, 0), (0, 1, 0), (2, 15, 1), (0, 16, 3), (1, 17, 0), (0, 63, 9), (5, 70, 20), (3, 0, 4), (0, 0, 2)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16, slices of 32 rows: short sequences then meet every kind of tile."""
    from longview.ops.attention import triton_launch

    monkeypatch.setattr(triton_launch, "SLICE", 32)
    triton_launch._recent.clear()


@pytest.fixture(params=[False, True], ids=["apart", "joined"])
def joined(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    from longview.ops.attention import triton_launch

    blocks = Blocks(16, 16, 4, 2, request.param)
    monkeypatch.setattr(triton_launch, "blocks_for", lambda *_, **__: blocks)


def on_device(batch: Case) -> Case:
    names = ("q", "k", "v", "d_out", "position", "time", "timestamps")
    given = {name: getattr(batch, name) for name in names}
    return replace(batch, **{name: None if x is None else x.to(DEVICE) for name, x in given.items()})


def run(batch: Case, mask: MaskSpec) -> tuple[Tensor, ...]:
    """Return out and the gradients by the kernels, on the CPU."""
    moved = on_device(batch)
    leaves = [x.requires_grad_() for x in (moved.q, moved.k, moved.v)]
    tables = {name: x.requires_grad_() for name, x in moved._tables().items()}
    bias = RelativeBias(**tables, timestamps=moved.timestamps) if tables else None
    c, _, t = torch.tensor(batch.lengths, dtype=torch.int64).view(-1, 3).to(DEVICE).unbind(1)
    out = semi_local_attention(
        *leaves, batch.offsets.to(DEVICE), mask, alpha=0.7, scale_length=5.0,
        context_lengths=c, target_lengths=t, bias=bias, backend="triton",
    )  # fmt: skip
    leaves += tables.values()
    return tuple(x.detach().cpu() for x in (out, *torch.autograd.grad(out, leaves, moved.d_out)))


class TestParity:
    @pytest.mark.usefixtures("joined")
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "mask",
        [
            MaskSpec.causal(),
            MaskSpec.ultra(16, 8),
            MaskSpec.ultra_prefix(20, 18),
            MaskSpec.ultra_prefix(7, 0),
            MaskSpec.meta(12, 7),
            MaskSpec.torcheasyrec(10, 12),
            MaskSpec(local_window=9, global_size=20, target_scope="semi_local", target_group=3),
        ],
        ids=lambda mask: f"{mask.local_window}-{mask.global_size}-{mask.global_mode}",
    )
    def test_output_and_gradients_are_those_of_the_definition(self, mask: MaskSpec, dtype: torch.dtype) -> None:
        batch = case(LENGTHS, heads=2, d_qk=20, d_v=24).to(dtype)
        expected = batch.to(torch.float64).run(mask, "reference")
        assert max(relative_errors(run(batch, mask), expected)) < LIMIT[dtype]

    @pytest.mark.usefixtures("joined")
    @given(MASKS, st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=3))
    @settings(
        max_examples=20 if DEVICE == "cpu" else 3,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_any_mask_and_lengths(self, mask: MaskSpec, lengths: list[tuple[int, int, int]]) -> None:
        batch = case(lengths, heads=1, d_qk=8, d_v=8)
        expected = batch.to(torch.float64).run(mask, "reference")
        assert max(relative_errors(run(batch, mask), expected)) < 1e-5

    @pytest.mark.parametrize("dim", [8, 32, 64, 128, 256])
    def test_head_dimensions(self, dim: int) -> None:
        batch = case([40], heads=1, d_qk=dim, d_v=dim)
        expected = batch.to(torch.float64).run(MaskSpec.causal(), "reference", alpha=0.7)
        assert max(relative_errors(run(batch, MaskSpec.causal()), expected)) < 1e-5


class TestBias:
    @pytest.mark.usefixtures("joined")
    @pytest.mark.parametrize("parts", [("position",), ("time",), ("position", "time")], ids="+".join)
    @pytest.mark.parametrize("mask", [MaskSpec.causal(), MaskSpec.ultra(16, 8), MaskSpec.meta(12, 7)])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_output_and_every_gradient(self, mask: MaskSpec, parts: tuple[str, ...], dtype: torch.dtype) -> None:
        batch = case(LENGTHS, heads=2, d_qk=20, d_v=24, bias=True)
        absent = {name: None for name in ("position", "time") if name not in parts}
        batch = replace(batch, **absent).to(dtype)
        expected = batch.to(torch.float64).run(mask, "reference")
        found = run(batch, mask)
        assert len(found) == 4 + len(parts)
        assert max(relative_errors(found, expected)) < LIMIT[dtype]

    def test_gradients_of_the_tables_have_the_same_bits_again(self) -> None:
        batch = case(LENGTHS, bias=True)
        assert all(map(torch.equal, run(batch, MaskSpec.causal()), run(batch, MaskSpec.causal())))


class TestProperties:
    MASK = MaskSpec.ultra_prefix(10, 5)

    def test_ten_runs_have_the_same_bits(self) -> None:
        batch = case(LENGTHS)
        first = run(batch, self.MASK)
        for _ in range(9 if DEVICE == "cuda" else 1):
            assert all(map(torch.equal, first, run(batch, self.MASK)))

    def test_a_sequence_has_the_same_bits_alone_and_in_company(self) -> None:
        batch = case(LENGTHS)
        together = run(batch, self.MASK)
        for number in range(len(LENGTHS)):
            alone = run(batch.alone(number), self.MASK)
            assert all(torch.equal(a[batch.rows(number)], b) for a, b in zip(together, alone, strict=True))

    def test_nan_in_a_neighbour_does_not_spread(self) -> None:
        batch = case([(0, 40, 3), (2, 33, 0), (0, 17, 1)])
        poisoned = replace(batch, **{name: getattr(batch, name).clone() for name in ("q", "k", "v", "d_out")})
        for name in ("q", "k", "v", "d_out"):
            getattr(poisoned, name)[batch.rows(1)] = float("nan")
        for clean, other in zip(run(batch, self.MASK), run(poisoned, self.MASK), strict=True):
            for number in (0, 2):
                assert torch.equal(clean[batch.rows(number)], other[batch.rows(number)])

    def test_a_masked_key_changes_nothing(self) -> None:
        batch = case([40])
        changed = replace(batch, k=batch.k.clone(), v=batch.v.clone())
        changed.k[7], changed.v[7] = 100.0, -50.0  # outside the prefix of 5, and of the window from row 17 on
        assert torch.equal(run(batch, self.MASK)[0][17:], run(changed, self.MASK)[0][17:])

    def test_slices_of_one_projection_are_read_in_place(self) -> None:
        batch = case([(0, 33, 0), (0, 20, 0)], heads=2, d_qk=8, d_v=8)
        together = torch.cat([x.flatten(1) for x in (batch.q, batch.k, batch.v)], 1)
        q, k, v = (x.view(-1, 2, 8) for x in together.split(16, 1))
        assert not q.is_contiguous()
        assert all(map(torch.equal, run(replace(batch, q=q, k=k, v=v), self.MASK), run(batch, self.MASK)))

    def test_inference_mode_gives_the_same_bits(self) -> None:
        batch = case(LENGTHS)
        c, _, t = torch.tensor(batch.lengths).unbind(1)
        with torch.inference_mode():
            moved, offsets = on_device(batch), batch.offsets.clone().to(DEVICE)
            found = semi_local_attention(
                moved.q, moved.k, moved.v, offsets, self.MASK, alpha=0.7, scale_length=5.0,
                context_lengths=c.to(DEVICE), target_lengths=t.to(DEVICE), backend="triton",
            )  # fmt: skip
        assert torch.equal(found.cpu(), run(batch, self.MASK)[0])

    def test_an_empty_batch(self) -> None:
        assert run(case([]), self.MASK)[0].shape == (0, 2, 8)
        assert run(case([0, 0]), self.MASK)[0].shape == (0, 2, 8)


class TestNewestRows:
    @pytest.mark.parametrize("mask", [MaskSpec.causal(), MaskSpec.ultra(16, 8), MaskSpec.ultra_prefix(20, 18)])
    @pytest.mark.parametrize("backend", ["reference", "triton"])
    def test_rows_are_those_of_the_full_pass(self, mask: MaskSpec, backend: str) -> None:
        batch = case([(0, 5, 0), (2, 30, 1), (0, 0, 20), (0, 60, 10)], heads=2, d_qk=20, d_v=24)
        asked = [2, 0, 20, 13]
        rows = torch.cat([torch.arange(batch.rows(i).stop - n, batch.rows(i).stop) for i, n in enumerate(asked)])
        c, _, t = torch.tensor(batch.lengths).unbind(1)
        found = newest_rows_attention(
            batch.q[rows].to(DEVICE), batch.k.to(DEVICE), batch.v.to(DEVICE),
            torch.tensor([0, *asked]).cumsum(0).to(DEVICE), batch.offsets.to(DEVICE), mask,
            alpha=0.7, scale_length=5.0, context_lengths=c.to(DEVICE), target_lengths=t.to(DEVICE),
            backend=backend,  # type: ignore[arg-type]
        )  # fmt: skip
        expected = batch.to(torch.float64).run(mask, "reference")[0][rows]
        assert relative_errors([found.cpu()], [expected])[0] < 1e-5

    def test_an_append_exact_mask_needs_only_prefix_and_window(self) -> None:
        mask, length, new = MaskSpec.ultra_prefix(10, 5), 60, 4
        batch = case([length])
        kept = torch.cat([torch.arange(5), torch.arange(length - new - 9, length)])
        found = newest_rows_attention(
            batch.q[-new:], batch.k[kept], batch.v[kept], torch.tensor([0, new]), torch.tensor([0, kept.numel()]), mask,
            alpha=0.7, scale_length=5.0,
        )  # fmt: skip
        expected = batch.to(torch.float64).run(mask, "reference")[0][-new:]
        assert relative_errors([found], [expected])[0] < 1e-6


def test_it_is_an_operator_that_compilers_see() -> None:
    batch = on_device(case([20, 13]))
    offsets = batch.offsets.to(DEVICE)
    from longview.ops.attention.triton_attention import _encoded, triton_attention

    triton_attention(batch.q, batch.k, batch.v, offsets, MaskSpec.causal(), alpha=1.0, scale_length=1.0)
    mask = _encoded(MaskSpec(local_window=4), ChosenBlocks(forward=Blocks(16, 16, 4, 2)))
    arguments = (batch.q, batch.k, batch.v, offsets, mask, 1.0, 1.0, None, None, None, None, None)
    looks = ("test_schema", "test_faketensor")
    found = torch.library.opcheck(torch.ops.longview.semi_local_attention, arguments, test_utils=looks)
    assert found == dict.fromkeys(looks, "SUCCESS")


@pytest.mark.slow
def test_every_shipped_configuration_compiles_for_hopper() -> None:
    """No spills; products on the matrix units."""
    rows = compiled("longview.ops.attention.triton_shipped")
    assert len(rows) == 51
    for row in rows:
        assert row["stack"] == 0, row
        assert row["wgmma"] > 0, row


class TestBeforeSilu:
    """The fused layer's backward pass: on through the SiLU that made q, k and v, and the sums for its bias."""

    @pytest.mark.usefixtures("joined")
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("mask", [MaskSpec.causal(), MaskSpec.ultra_prefix(20, 18), MaskSpec.ultra(16, 8)], ids=str)
    def test_equals_the_plain_gradients_times_the_slope(self, mask: MaskSpec, dtype: torch.dtype) -> None:
        from longview.ops.attention.triton_attention import LayerAttention

        torch.manual_seed(3)
        heads, d_qk, d_v = 2, 24, 16
        sizes = [heads * d_v, heads * d_qk, heads * d_qk]
        offsets = torch.tensor([0, 0, 1, 40, 120, 137], device=DEVICE)
        before, d_before = (torch.randn(137, sum(sizes), device=DEVICE).to(dtype) for _ in range(2))
        after = torch.nn.functional.silu(before)

        def views(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            v, q, k = (part.view(137, heads, -1) for part in x.split(sizes, dim=1))
            return q, k, v

        d_out = torch.randn(137, heads, d_v, device=DEVICE).to(dtype)
        attention = LayerAttention.of(offsets, 137, mask, 0.7, 5.0)
        found = attention.backward_before_silu(d_out, *views(after), views(before), views(d_before))

        plain = torch.empty_like(after)
        attention.backward(d_out, *views(after), views(plain))
        exact = before.double()
        slope = torch.sigmoid(exact) * (1 + exact * (1 - torch.sigmoid(exact)))
        expected = plain.double() * slope
        assert (d_before.double() - expected).norm() / expected.norm() < LIMIT[dtype]
        assert (found.double().sum(0) - expected.sum(0)).norm() / expected.sum(0).norm() < LIMIT[dtype]
