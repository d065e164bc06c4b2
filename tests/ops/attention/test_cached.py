"""Candidates behind cached keys get what they get where keys are put together; nothing of another user is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longview.errors import InputError
from longview.ops.attention import Blocks, ChosenBlocks, MaskSpec, newest_rows_attention
from longview.ops.attention.cached import CachedKeys, CandidateWork, cached_attention
from longview.ops.jagged import concat_rows, offsets_from_lengths
from longview.ops.kernels import why_no_triton
from tests.ops.offline import compiled

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNEL = pytest.mark.skipif(why_no_triton(DEVICE) is not None, reason=str(why_no_triton(DEVICE)))
SETTINGS = {"alpha": 0.4, "scale_length": 3.0}
SMALL = ChosenBlocks(forward=Blocks(16, 16, 4, 2))
MASKS = {
    "causal": MaskSpec.causal(),
    "prefix": MaskSpec(local_window=30, global_size=7, target_scope="semi_local"),
    "window": MaskSpec(local_window=20, target_scope="semi_local"),
    "recent": MaskSpec(local_window=5, global_size=4, global_mode="recent"),
    "without themselves": MaskSpec(target_self=False),
}


class Users:
    """Random candidates and caches; `counts` and `cached` are those of each user."""

    def __init__(
        self, counts: list[int], cached: list[int], *, context: list[int] | None = None, d_qk: int = 24, d_v: int = 16
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        total, kept = sum(counts), sum(cached)

        def draw(rows: int, dim: int) -> torch.Tensor:
            return torch.randn(rows, 2, dim, generator=generator).to(DEVICE)

        self.q, self.k, self.v = draw(total, d_qk), draw(total, d_qk), draw(total, d_v)
        offsets = offsets_from_lengths(torch.tensor(cached)).to(DEVICE)
        lengths = None if context is None else torch.tensor(context, device=DEVICE)
        self.cache = CachedKeys(draw(kept, d_qk), draw(kept, d_v), offsets, lengths)
        self.work = CandidateWork(offsets_from_lengths(torch.tensor(counts)).to(DEVICE), total)

    def run(self, mask: MaskSpec, **more: object) -> torch.Tensor:
        return cached_attention(self.q, self.k, self.v, self.work, self.cache, mask, **SETTINGS, **more)

    def joined(self, mask: MaskSpec) -> torch.Tensor:
        """Return what `newest_rows_attention` gives of keys put together, in float64."""
        rows = concat_rows(self.cache.offsets, self.work.offsets, len(self.cache.keys), len(self.q))
        keys, values = torch.cat([self.cache.keys, self.k])[rows], torch.cat([self.cache.values, self.v])[rows]
        return newest_rows_attention(
            *(x.double().cpu() for x in (self.q, keys, values)),
            self.work.offsets.cpu(),
            (self.cache.offsets + self.work.offsets).cpu(),
            mask,
            **SETTINGS,
            context_lengths=None if self.cache.context_lengths is None else self.cache.context_lengths.cpu(),
            target_lengths=self.work.offsets.diff().cpu(),
            backend="reference",
        )


@KERNEL
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("context", [None, [3, 0, 0, 2, 1]])
def test_the_kernel_equals_keys_put_together(name: str, context: list[int] | None) -> None:
    users = Users([5, 0, 17, 33, 1], [40, 9, 0, 16, 71], context=context)
    found = users.run(MASKS[name], blocks=SMALL, kernel=True)
    expected = users.joined(MASKS[name]).float()
    assert (found.cpu() - expected).norm() <= (2e-6 if DEVICE == "cpu" else 1e-3) * expected.norm()


@pytest.mark.parametrize("name", MASKS)
def test_without_a_kernel_keys_are_put_together(name: str) -> None:
    users = Users([5, 0, 17], [40, 9, 0])
    torch.testing.assert_close(
        users.run(MASKS[name], kernel=False).cpu(), users.joined(MASKS[name]).float(), rtol=1e-4, atol=1e-5
    )


@KERNEL
@settings(max_examples=10, deadline=None)
@given(users=st.lists(st.tuples(st.integers(0, 35), st.integers(0, 50)), min_size=1, max_size=5))
def test_any_lengths(users: list[tuple[int, int]]) -> None:
    given_users = Users([count for count, _ in users], [cached for _, cached in users])
    found = given_users.run(MASKS["prefix"], blocks=SMALL, kernel=True)
    expected = given_users.joined(MASKS["prefix"]).float()
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3 if DEVICE == "cuda" else 1e-5)


@KERNEL
def test_a_user_alone_has_the_bits_of_a_user_in_company() -> None:
    together, counts, cached = Users([5, 20, 18], [40, 33, 61]), [0, 5, 25, 43], [0, 40, 73, 134]
    found = together.run(MASKS["prefix"], blocks=SMALL, kernel=True)
    for user in range(3):
        rows, kept = slice(counts[user], counts[user + 1]), slice(cached[user], cached[user + 1])
        alone = Users([0], [0])
        alone.q, alone.k, alone.v = (x[rows] for x in (together.q, together.k, together.v))
        ends = torch.tensor([0, kept.stop - kept.start], device=DEVICE)
        alone.cache = CachedKeys(together.cache.keys[kept], together.cache.values[kept], ends)
        alone.work = CandidateWork(torch.tensor([0, rows.stop - rows.start], device=DEVICE), rows.stop - rows.start)
        assert torch.equal(alone.run(MASKS["prefix"], blocks=SMALL, kernel=True), found[rows])


@KERNEL
def test_nothing_of_another_user_is_read() -> None:
    """What lies behind the cache of a user is NaN; so is what lies behind the candidates."""
    users = Users([5, 20], [17, 33])
    expected = users.run(MASKS["prefix"], blocks=SMALL, kernel=True)[:5]
    for x in (users.cache.keys, users.cache.values):
        x[17:] = torch.nan
    for x in (users.q, users.k, users.v):
        x[5:] = torch.nan
    assert torch.equal(users.run(MASKS["prefix"], blocks=SMALL, kernel=True)[:5], expected)


@KERNEL
def test_layers_side_by_side_in_one_tensor_are_read_in_place() -> None:
    users = Users([5, 20], [17, 33], d_v=24)
    keys, values = (torch.stack([torch.full_like(x, torch.nan), x], 1) for x in (users.cache.keys, users.cache.values))
    expected = users.run(MASKS["prefix"], blocks=SMALL, kernel=True)
    users.cache = replace(users.cache, keys=keys[:, 1], values=values[:, 1])
    assert torch.equal(users.run(MASKS["prefix"], blocks=SMALL, kernel=True), expected)


def test_what_it_does_not_do_is_refused() -> None:
    users = Users([2], [3])
    with pytest.raises(InputError, match="groups of 2 see each other"):
        users.run(MaskSpec(target_group=2))
    users.cache = replace(users.cache, keys=users.cache.keys.half())
    with pytest.raises(InputError, match="expected one dtype"):
        users.run(MaskSpec.causal())
    users = Users([2], [3])
    users.k = users.k[:1]
    with pytest.raises(InputError, match=r"k has shape \(1, 2, 24\); expected \(2, 2, 24\)"):
        users.run(MaskSpec.causal())
    users = Users([2], [3])
    users.cache = replace(users.cache, keys=users.cache.keys[:, :1])
    with pytest.raises(
        InputError, match=r"the cache has keys \(3, 1, 24\) and values \(3, 2, 16\), and q \(2, 2, 24\)"
    ):
        users.run(MaskSpec.causal())
    users = Users([2], [3])
    users.work = CandidateWork(offsets_from_lengths(torch.tensor([1, 1])).to(DEVICE), 2)
    with pytest.raises(
        InputError, match="work is of 2 candidates of 2 users; q has 2 candidates and the cache 1 users"
    ):
        users.run(MaskSpec.causal())


@pytest.mark.slow
def test_every_shipped_configuration_compiles_for_hopper() -> None:
    """No spills; products on the matrix units."""
    for row in compiled("longview.ops.attention.triton_cached"):
        assert row["stack"] == 0, row
        assert row["wgmma"] > 0, row
