"""Attention truncation: what the second stage reads, what comes back, and what cannot influence it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longview.config import parse
from longview.errors import InputError
from longview.models.hstu import HSTUStack
from longview.models.layer_config import AttentionConfig, LayerConfig
from longview.models.layout import Layout
from longview.models.retriever import RetrieverConfig
from longview.models.topology import Body, TruncatedStack
from longview.ops.jagged import offsets_from_lengths
from tests.models.histories import WINDOW, build, histories, together

PARTS = [(2, 9, 3), (0, 1, 2), (1, 4, 0), (3, 0, 1), (0, 12, 2)]  # context, history, targets
CONTEXT, HISTORY, TARGETS = (torch.tensor(x) for x in zip(*PARTS, strict=True))
OFFSETS = offsets_from_lengths(CONTEXT + HISTORY + TARGETS)
LENGTH = 4
TRUNCATION = {"length": LENGTH, "layers": 2}
OPTIONS = [
    {"truncation": TRUNCATION},
    {"truncation": TRUNCATION, "attention": WINDOW},
    {"truncation": {**TRUNCATION, "targets": "second", "positions": True}, "attention": WINDOW},
    {"truncation": {**TRUNCATION, "attention": {"local_window": 2, "time_bias": True}}},
]


def stack_of(options: dict[str, object]) -> TruncatedStack:
    stack = build(**options).stack
    assert isinstance(stack, TruncatedStack)
    return stack


def inputs() -> tuple[Tensor, Layout]:
    generator = torch.Generator().manual_seed(3)
    total = int(OFFSETS[-1])
    x = torch.randn(total, 16, generator=generator, dtype=torch.float64)
    stamps = torch.randint(0, 5000, (total,), generator=generator)
    longest = int(OFFSETS.diff().max())
    return x, Layout(OFFSETS, longest, stamps, context_lengths=CONTEXT, target_lengths=TARGETS)


def by_hand(stack: TruncatedStack, x: Tensor, stamps: Tensor, part: tuple[int, int, int]) -> Tensor:
    """One sequence alone, with lists of tokens: the rows that come out."""
    c, h, t = part
    early = list(range(c + h + (t if stack.targets == "both" else 0)))

    def run(layers: HSTUStack, rows: list[int], values: Tensor, history: int) -> Tensor:
        number = len([r for r in rows if r >= c + h])
        layout = Layout(
            torch.tensor([0, len(rows)]),
            len(rows),
            stamps[rows],
            context_lengths=torch.tensor([len(rows) - history - number]),
            target_lengths=torch.tensor([number]),
        )
        return layers(values, layout)

    first = x.clone()
    first[early] = run(stack.first, early, x[early], h)
    kept = [*range(c), *range(c + max(h - LENGTH, 0), c + h + t)]
    values = first[kept]
    if stack.positions is not None:
        for row, token in enumerate(kept):
            if c <= token < c + h:
                values[row] = values[row] + stack.positions.weight[c + h - 1 - token]
    return run(stack.second, kept, values, min(h, LENGTH))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_equals_its_definition(options: dict[str, object]) -> None:
    stack, (x, layout) = stack_of(options), inputs()
    hidden = stack.hidden(x, layout)
    assert hidden.rows is not None
    assert layout.timestamps is not None
    expected, rows = [], []
    for b, (c, h, t) in enumerate(PARTS):
        start, stop = int(OFFSETS[b]), int(OFFSETS[b + 1])
        expected.append(by_hand(stack, x[start:stop], layout.timestamps[start:stop], (c, h, t)))
        rows += [start + r for r in (*range(c), *range(c + max(h - LENGTH, 0), c + h + t))]
    assert hidden.rows.tolist() == rows
    torch.testing.assert_close(hidden.values, torch.cat(expected), rtol=1e-9, atol=1e-9)
    assert hidden.layout.offsets.diff().tolist() == [c + min(h, LENGTH) + t for c, h, t in PARTS]
    behind = {int(end) - n for end, (_, _, t) in zip(OFFSETS[1:], PARTS, strict=True) for n in range(1, t + 1)}
    targets = [r for r, token in enumerate(rows) if token in behind]
    assert torch.equal(hidden.targets(int(TARGETS.sum())), hidden.values[targets])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_newest_vector_is_the_newest_row(options: dict[str, object]) -> None:
    stack, (x, layout) = stack_of(options), inputs()
    found, expected = stack.newest(x, layout), stack.hidden(x, layout).newest()
    has_history = HISTORY > 0
    torch.testing.assert_close(found[has_history], expected[has_history], rtol=1e-9, atol=1e-9)


def test_a_history_no_longer_than_the_length_is_not_cut() -> None:
    """With the same weights, a truncation that cuts nothing is one deeper stack."""
    truncated = build(truncation={"length": 64, "layers": 2}, layers=1)
    plain = build(layers=3)
    names = {"first.layers.0": "layers.0", "second.layers.0": "layers.1", "second.layers.1": "layers.2"}
    weights = truncated.state_dict()
    for old, new in names.items():
        weights = {name.replace(f"stack.{old}.", f"stack.{new}."): value for name, value in weights.items()}
    plain.load_state_dict(weights)
    batch = together(histories([20, 3, 1]))
    assert truncated.queries(batch).rows is None
    assert torch.equal(truncated(batch), plain(batch))
    assert torch.equal(truncated.user_vectors(batch), plain.user_vectors(batch))


def test_users_shorter_than_the_truncation_share_a_batch_with_longer_ones() -> None:
    model = build(truncation=TRUNCATION)
    parts = histories([2, 11, 1, 4, 5])
    found = model.queries(together(parts))
    assert found.rows is not None
    assert found.rows.tolist() == [0, 1, *range(9, 13), 13, *range(14, 18), *range(19, 23)]
    alone = [model.queries(part).vectors for part in parts]
    torch.testing.assert_close(found.vectors, torch.cat(alone), rtol=1e-9, atol=1e-9)


def test_queries_meet_the_targets_of_their_own_events() -> None:
    model = build(truncation=TRUNCATION)
    batch = together(histories([7, 3]))
    found = model.queries(batch)
    assert found.of(torch.arange(10)).tolist() == [3, 4, 5, 6, 7, 8, 9]
    with pytest.raises(InputError, match="queries"):
        model(batch)


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_a_later_event_cannot_change_an_earlier_query(options: dict[str, object]) -> None:
    model = build(embedding={"positions": "start"}, **options)
    batch = together(histories([9]))
    before = model.queries(batch)
    assert before.rows is not None
    for changed in range(9):
        items = batch.items.clone()
        items[changed] = (items[changed] + 1) % 12
        after = model.queries(replace(batch, items=items))
        earlier = before.rows < changed
        assert torch.equal(before.vectors[earlier], after.vectors[earlier])
        assert not torch.equal(before.vectors[~earlier], after.vectors[~earlier])


def test_what_was_cut_off_still_matters_through_the_first_stage() -> None:
    model = build(truncation=TRUNCATION)
    batch = together(histories([9]))
    items = batch.items.clone()
    items[0] = (items[0] + 1) % 12
    assert not torch.equal(model.user_vectors(batch), model.user_vectors(replace(batch, items=items)))


def test_gradients_reach_every_parameter_and_every_event() -> None:
    stack = stack_of(OPTIONS[2])
    x, layout = inputs()
    x.requires_grad_()
    stack.hidden(x, layout).values.square().sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(1) > 0).all()
    for name, parameter in stack.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"truncation": {"layers": 2}}, "truncation.length: Field required"),
        ({"truncation": {"length": 0, "layers": 2}}, "truncation.length"),
        ({"truncation": {"length": 8}}, "truncation.layers: Field required"),
        ({"truncation": TRUNCATION, "kind": "sasrec"}, "set kind hstu"),
    ],
)
def test_half_set_options_are_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse(RetrieverConfig, values, "model.yaml")


def test_most_is_all_but_in_every_fourth_layer() -> None:
    stack = Body(16, 2, 0.0, LayerConfig(recompute="most")).plain(5, 8, AttentionConfig())
    assert [layer.fused.recompute_uvqk for layer in stack.hstu_layers()] == [True, True, True, False, True]
    assert all(layer.fused.recompute_normed and layer.fused.recompute_gated for layer in stack.hstu_layers())
