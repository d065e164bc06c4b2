"""Counted operations: by hand, by brute force over masks, and by torch's own counter on the dense parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from longview.data.batches import batch_of_sequences
from longview.data.schema import Schema
from longview.errors import InputError
from longview.models.flops import Lengths, forward_flops, lengths_of, newest_row_pairs, request_flops, training_flops
from longview.models.heads import HeadConfig
from longview.models.retriever import RetrieverConfig
from longview.ops.attention import MaskSpec

SMALL: dict[str, Any] = {"width": 8, "heads": 2, "layers": 3, "max_length": 16}
TRUNCATION = {"length": 4, "layers": 2}
ITEMS = 11


def config(**values: Any) -> RetrieverConfig:
    return RetrieverConfig.model_validate({**SMALL, **values})


def test_one_layer_by_hand() -> None:
    model = RetrieverConfig(width=4, heads=1, layers=1, max_length=8)
    found = forward_flops(model, Lengths(3))
    assert found.projections == 3 * (2 * 4 * 16 + 2 * 4 * 4)  # UVQK, output
    assert found.attention == 6 * (2 * 4 + 2 * 4)  # six pairs of a triangle, one product with K and one with V
    assert found.total == 576


def test_a_training_step_by_hand() -> None:
    model = RetrieverConfig(width=4, heads=1, layers=1, max_length=8)
    found = training_flops(model, [Lengths(3), Lengths(2)], scored=10)
    assert found.projections == 3 * 5 * 160
    assert found.attention == 3 * (6 + 3) * 16
    assert found.scores == 3 * 5 * 2 * 4 * 10


def test_a_request_by_hand() -> None:
    model = RetrieverConfig(width=4, heads=1, layers=1, max_length=8)
    found = request_flops(model, Lengths(3), candidates=10)
    assert found.projections == 3 * 2 * 4 * 8 + 2 * 4 * 8 + 2 * 4 * 4  # V and K of all, U and Q of one, one output
    assert found.attention == 3 * 16
    assert found.scores == 80


def test_candidates_of_a_ranking_request_go_through_head_and_layers() -> None:
    model = RetrieverConfig(width=4, heads=1, layers=1, max_length=8)
    head = HeadConfig(trunk=(6,), tower=(5,))
    found = request_flops(model, Lengths(3, targets=2), candidates=0, head=head, tasks=3)
    assert found.scores == 2 * 2 * (4 * 6 + 3 * (6 * 5 + 5))
    assert found.projections == 5 * 160
    assert found.attention == (6 + 2 * (3 + 1)) * 16


@pytest.mark.parametrize(
    "attention",
    [
        {},
        {"local_window": 3, "global_size": 2, "global_mode": "prefix"},
        {"local_window": 3, "global_size": 2, "global_mode": "recent"},
    ],
)
def test_attention_counts_what_the_mask_shows(attention: dict[str, Any]) -> None:
    model = config(attention=attention)
    mask = model.attention.mask()
    pair = 2 * 2 * (4 + 4)
    dense = int(mask.dense(2, 9, 3).sum())
    assert forward_flops(model, Lengths(9, 2, 3)).attention == 3 * dense * pair
    assert newest_row_pairs(mask, 2, 9) == int(mask.dense(2, 9, 0)[-1].sum())


def counted_linears(run: Any) -> int:
    """Return what torch counts in products of two matrices: linear layers alone, as attention has batches of them."""
    with FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(operation, 0) for operation in (torch.ops.aten.mm, torch.ops.aten.addmm))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"layer": {"output": "concat", "qk_dim": 3, "v_dim": 5}},
        {"truncation": TRUNCATION},
        {"kind": "sasrec"},
    ],
)
def test_projections_are_those_that_torch_counts(values: dict[str, Any]) -> None:
    chosen = config(**values)
    model = chosen.build(ITEMS)
    sequences = [[1, 2, 3, 4, 5, 6, 7], [3, 4], [5]]
    batch = batch_of_sequences(sequences)
    counted = counted_linears(lambda: model.queries(batch))
    assert counted == sum(forward_flops(chosen, lengths).projections for lengths in lengths_of(chosen, batch))


def test_the_backward_pass_of_projections_is_twice_the_forward() -> None:
    chosen = config()
    model, batch = chosen.build(ITEMS), batch_of_sequences([[1, 2, 3, 4, 5]])
    both = counted_linears(lambda: model.queries(batch).vectors.sum().backward())
    assert both == training_flops(chosen, lengths_of(chosen, batch), scored=1).projections


def test_streams_count_their_own_events_and_the_fusion() -> None:
    streams = {"all": {"actions": ["all"]}, "likes": {"actions": ["like"], "layers": 1, "max_length": 2}}
    chosen = config(streams=streams)
    actions = torch.tensor([0, 1, 1, 0, 1, 0])
    batch = batch_of_sequences([[1, 2, 3, 4, 5, 6]], actions=actions)
    (lengths,) = lengths_of(chosen, batch, ["like"])
    assert dict(lengths.streams) == {"all": 6, "likes": 3}
    assert lengths.fused == 5  # all but the event whose newest like is beyond the stream's limit
    found = forward_flops(chosen, lengths)
    plain = config()
    shorter = config(layers=1)
    assert found.attention == (
        forward_flops(plain, Lengths(6)).attention + forward_flops(shorter, Lengths(2)).attention
    )
    model = chosen.build(ITEMS, ["like"])
    counted = counted_linears(lambda: model.queries(batch))
    assert counted == found.projections + found.merging
    with pytest.raises(InputError, match=r"streams all, likes.*Lengths\(streams"):
        forward_flops(chosen, Lengths(6))


def test_only_what_is_left_of_a_truncated_history_is_scored() -> None:
    chosen = config(truncation=TRUNCATION)
    assert training_flops(chosen, [Lengths(9)], scored=7).scores == 3 * 4 * 2 * 8 * 7
    shared = config(truncation={**TRUNCATION, "targets": "second"})
    more = forward_flops(chosen, Lengths(9, targets=2)).total - forward_flops(shared, Lengths(9, targets=2)).total
    early = config()
    assert more == forward_flops(early, Lengths(9, targets=2)).total - forward_flops(early, Lengths(9)).total


def test_merging_actions_through_a_network_is_counted() -> None:
    schema = Schema(actions=("view", "like"))
    chosen = config(embedding={"actions": "mlp"})
    assert forward_flops(chosen, Lengths(5), schema=schema).merging == 5 * 2 * (2 * 16 * 8 + 8 * 8)
    assert forward_flops(config(embedding={"actions": "sum"}), Lengths(5), schema=schema).merging == 0


def test_semi_local_attention_grows_linearly_and_full_attention_does_not() -> None:
    local = config(attention={"local_window": 4, "global_size": 2})
    one, two, three = (forward_flops(local, Lengths(n)).attention for n in (100, 200, 300))
    assert three - two == two - one
    full = [forward_flops(config(), Lengths(n)).attention for n in (100, 200, 300)]
    assert full[2] - full[1] > full[1] - full[0]
    assert MaskSpec.causal().pairs(0, 300, 0) * 3 * 32 == full[2]
