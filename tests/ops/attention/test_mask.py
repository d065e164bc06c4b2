"""The mask: golden vectors of the design, the peers' formulas transcribed, and counting in closed form."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longview.errors import InputError
from longview.ops.attention import MaskSpec
from longview.ops.attention.mask import PRESETS
from tests.ops.attention.conftest import MASKS


def visible(mask: MaskSpec, c: int, h: int, t: int) -> list[set[int]]:
    return [set(row.nonzero()[:, 0].tolist()) for row in mask.dense(c, h, t)]


sizes = st.tuples(st.integers(0, 4), st.integers(0, 16), st.integers(0, 5))


class TestGoldenVectors:
    def test_recent(self) -> None:
        mask = MaskSpec(local_window=3, global_size=2, global_mode="recent")
        assert visible(mask, 0, 6, 0) == [{0}, {0, 1}, {0, 1, 2}, {1, 2, 3}, {0, 1, 2, 3, 4}, {0, 1, 2, 3, 4, 5}]

    def test_prefix(self) -> None:
        mask = MaskSpec(local_window=2, global_size=2, global_mode="prefix")
        assert visible(mask, 0, 6, 0) == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 3, 4}, {0, 1, 4, 5}]

    def test_context_and_targets(self) -> None:
        mask = MaskSpec(local_window=2, global_size=0)
        rows = [{0}, {0, 1}, {0, 1, 2}, {0, 2, 3}, {0, 3, 4}, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 6}]
        assert visible(mask, 1, 4, 2) == rows


class TestFields:
    def test_semi_local_targets_see_context_prefix_window_and_themselves(self) -> None:
        mask = MaskSpec(local_window=2, global_size=1, target_scope="semi_local")
        assert visible(mask, 1, 5, 2)[-2:] == [{0, 1, 4, 5, 6}, {0, 1, 4, 5, 7}]

    def test_semi_local_targets_without_a_window_see_all_history(self) -> None:
        assert visible(MaskSpec(target_scope="semi_local"), 0, 3, 1)[-1] == {0, 1, 2, 3}

    def test_semi_local_targets_of_a_recent_mask_see_no_prefix(self) -> None:
        mask = MaskSpec(local_window=2, global_size=2, global_mode="recent", target_scope="semi_local")
        assert visible(mask, 0, 5, 1)[-1] == {3, 4, 5}

    def test_a_target_sees_the_earlier_ones_of_its_group_only(self) -> None:
        rows = visible(MaskSpec(target_group=2), 0, 1, 5)[1:]
        assert rows == [{0, 1}, {0, 1, 2}, {0, 3}, {0, 3, 4}, {0, 5}]

    def test_bidirectional_context_sees_context_and_history_but_no_target(self) -> None:
        mask = MaskSpec(local_window=1, context_rows="bidirectional")
        assert visible(mask, 2, 2, 1)[:2] == [{0, 1, 2, 3}] * 2

    def test_hidden_context_is_seen_within_the_window_as_one_position(self) -> None:
        mask = MaskSpec(local_window=3, context_visible=False)
        assert visible(mask, 2, 4, 0)[2:] == [{0, 1, 2}, {0, 1, 2, 3}, {2, 3, 4}, {3, 4, 5}]

    @given(MASKS, sizes)
    def test_the_diagonal_is_on_and_nothing_sees_the_future_beyond_its_region(
        self, mask: MaskSpec, size: tuple[int, int, int]
    ) -> None:
        c, h, t = size
        dense = mask.dense(c, h, t)
        assert dense.diagonal()[: c + h].all()
        assert bool(dense.diagonal()[c + h :].all()) or not mask.target_self
        assert not dense[: c + h, c + h :].any(), "history and context never see targets"
        assert not dense[c:].triu(c + 1).any(), "only context rows may look ahead"

    @given(MASKS, sizes)
    def test_a_window_as_long_as_the_history_is_causal(self, mask: MaskSpec, size: tuple[int, int, int]) -> None:
        c, h, t = size
        wide = dataclasses.replace(mask, local_window=h + 2, target_in_window=False)
        assert torch.equal(wide.dense(c, h, t), dataclasses.replace(wide, local_window=0).dense(c, h, t))


class TestPresets:
    def test_causal(self) -> None:
        assert torch.equal(MaskSpec.causal().dense(2, 5, 0), torch.ones(7, 7).tril().bool())

    @given(st.integers(0, 6), st.integers(0, 6), sizes)
    @settings(max_examples=200)
    def test_meta_is_the_rule_of_generative_recommenders(self, w: int, f: int, size: tuple[int, int, int]) -> None:
        """`_get_valid_attn_mask`, transcribed: ids with all context at 0 and all targets at m."""
        c, h, t = size
        n = c + h + t
        m = n - t - (c - 1 if c > 0 else 0)
        ids = [min(max(p - c + 1, 0) if c > 0 else p, m if t else n) for p in range(n)]
        expected = torch.zeros(n, n, dtype=torch.bool)
        for p in range(n):
            for q in range(n):
                ok = p == q or ids[p] > ids[q]
                if w and p != q:
                    ok = ok and (ids[p] - ids[q] <= w or (f > 0 and ids[p] >= m - f))
                if c:
                    ok = ok or (ids[p] == 0 and ids[q] < m)
                expected[p, q] = ok
        assert torch.equal(MaskSpec.meta(w, f).dense(c, h, t), expected)

    @given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 12))
    def test_meta_without_context_is_the_rule_of_hstu_ultra(self, w: int, f: int, h: int) -> None:
        """`hstu_ultra.py`: k = q, or 0 < q-k <= w, or q >= h - F and k < q; w = 0 is full causal."""
        expected = torch.tensor(
            [[k == q or (k < q and (w == 0 or q - k <= w or q >= h - f)) for k in range(h)] for q in range(h)]
        ).view(h, h)
        assert torch.equal(MaskSpec.meta(w, f).dense(0, h, 0), expected)

    @given(st.integers(1, 6), st.integers(0, 6), sizes)
    @settings(max_examples=200)
    def test_torcheasyrec_is_its_interval_rule(self, k1: int, k2: int, size: tuple[int, int, int]) -> None:
        """`build_sla_func_tensor`: [0, min(K2e, p+1)) U [max(K2e, p-K1+1), p+1); targets [0, L - T)."""
        c, h, t = size
        n, columns = c + h + t, torch.arange(c + h + t)
        k2e, expected = max(k2, c), torch.zeros(n, n, dtype=torch.bool)
        for p in range(n):
            if p < n - t:
                expected[p] = (columns < min(k2e, p + 1)) | ((columns >= max(k2e, p - k1 + 1)) & (columns < p + 1))
            else:
                expected[p] = columns < n - t
        assert torch.equal(MaskSpec.torcheasyrec(k1, k2).dense(c, h, t), expected)

    def test_ultra_is_recent_and_ultra_prefix_is_prefix(self) -> None:
        assert MaskSpec.ultra(3, 2).global_mode == "recent"
        assert MaskSpec.ultra_prefix(3, 2).global_mode == "prefix"

    @pytest.mark.parametrize("name", PRESETS)
    def test_presets_have_names(self, name: str) -> None:
        assert MaskSpec.preset(name) == getattr(MaskSpec, name)()

    def test_an_unknown_name_suggests_the_nearest(self) -> None:
        with pytest.raises(InputError, match="did you mean 'ultra_prefix'"):
            MaskSpec.preset("ultra-prefix")

    def test_a_size_that_a_preset_does_not_take_is_an_error(self) -> None:
        with pytest.raises(InputError, match="takes no sizes, not 'local_window'"):
            MaskSpec.preset("causal", local_window=3)


class TestAppendExact:
    @given(MASKS, sizes)
    @settings(max_examples=200)
    def test_what_claims_it_keeps_earlier_rows(self, mask: MaskSpec, size: tuple[int, int, int]) -> None:
        c, h, _ = size
        before, after = mask.dense(c, h, 0), mask.dense(c, h + 1, 0)
        if mask.append_exact:
            assert torch.equal(after[: c + h, : c + h], before)

    def test_prefix_is_and_recent_is_not(self) -> None:
        assert MaskSpec.ultra_prefix().append_exact
        assert MaskSpec.causal().append_exact
        assert not MaskSpec.ultra().append_exact
        assert not torch.equal(MaskSpec.ultra(2, 2).dense(0, 7, 0)[:6, :6], MaskSpec.ultra(2, 2).dense(0, 6, 0))

    def test_bidirectional_context_is_not(self) -> None:
        assert not MaskSpec(context_rows="bidirectional").append_exact

    def test_recent_without_a_window_is_causal_and_so_is(self) -> None:
        assert MaskSpec(global_size=4, global_mode="recent").append_exact


class TestPairs:
    @given(MASKS, sizes)
    @settings(max_examples=500)
    def test_closed_form_equals_counting(self, mask: MaskSpec, size: tuple[int, int, int]) -> None:
        assert mask.pairs(*size) == int(mask.dense(*size).sum())

    def test_cost_is_linear_in_length(self) -> None:
        mask = MaskSpec.ultra_prefix(256, 128)
        assert mask.pairs(0, 10**6, 0) <= 10**6 * (256 + 128)


class TestValue:
    def test_is_immutable_and_hashable(self) -> None:
        mask = MaskSpec.ultra()
        with pytest.raises(dataclasses.FrozenInstanceError):
            mask.local_window = 3  # type: ignore[misc]
        assert {mask: 1}[MaskSpec.ultra()] == 1

    def test_prints_as_text(self) -> None:
        text = MaskSpec(local_window=2).text(1, 3, 2)
        assert text.splitlines() == [
            "c0 x|...|..",
            "h0 x|x..|..",
            "h1 x|xx.|..",
            "h2 x|.xx|..",
            "t0 x|xxx|x.",
            "t1 x|xxx|.x",
        ]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("local_window", -1),
            ("local_window", 2.0),
            ("local_window", True),
            ("global_size", -3),
            ("global_mode", "prefx"),
            ("context_rows", "both"),
            ("context_visible", 1),
            ("target_scope", "all"),
            ("target_group", 0),
        ],
    )
    def test_a_bad_field_is_named(self, field: str, value: object) -> None:
        with pytest.raises(InputError, match=field):
            MaskSpec(**{field: value})  # type: ignore[arg-type]

    def test_a_misspelt_choice_suggests_the_nearest(self) -> None:
        with pytest.raises(InputError, match="did you mean 'prefix'"):
            MaskSpec(global_mode="prefx")  # type: ignore[arg-type]

    def test_negative_lengths_are_refused(self) -> None:
        with pytest.raises(InputError, match="history=-1"):
            MaskSpec().dense(0, -1, 0)
        with pytest.raises(InputError, match="targets=-2"):
            MaskSpec().pairs(0, 1, -2)
