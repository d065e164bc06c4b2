"""Mixture of transducers: which events a stream reads, how streams meet, and what cannot influence a position."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longview.config import parse
from longview.errors import InputError
from longview.models.layout import Layout
from longview.models.retriever import RetrieverConfig
from longview.models.streams import StreamConfig, StreamedStack
from longview.ops.jagged import offsets_from_lengths
from tests.models.histories import ACTIONS, NUM_ITEMS, WINDOW, build, histories, together

VIEWED, LIKED = {"actions": ["view", "none"]}, {"actions": ["like", "buy"]}
OPTIONS = {
    "concat": {"streams": {"consumption": VIEWED, "engagement": LIKED}},
    "sum": {"streams": {"consumption": VIEWED, "engagement": {**LIKED, "layers": 1}}, "fusion": "sum"},
    "three": {"streams": {"a": {"actions": ["all"]}, "b": {"actions": [1]}, "c": {"actions": ["buy"]}}},
    "short": {"streams": {"consumption": {**VIEWED, "max_length": 3}, "engagement": LIKED}},
    "truncated": {
        "streams": {"consumption": VIEWED, "engagement": {**LIKED, "truncation": {"length": 2, "layers": 1}}},
        "truncation": {"length": 4, "layers": 1},
        "attention": WINDOW,
    },
}
PARTS = [(2, 9, 3), (0, 1, 2), (1, 6, 0), (3, 0, 1), (0, 12, 2)]  # context, history, targets
CONTEXT, HISTORY, TARGETS = (torch.tensor(x) for x in zip(*PARTS, strict=True))
OFFSETS = offsets_from_lengths(CONTEXT + HISTORY + TARGETS)


def stack_of(options: dict[str, object]) -> StreamedStack:
    stack = build(**options).stack
    assert isinstance(stack, StreamedStack)
    return stack


def inputs() -> tuple[Tensor, Layout]:
    generator = torch.Generator().manual_seed(3)
    total = int(OFFSETS[-1])
    x = torch.randn(total, 16, generator=generator, dtype=torch.float64)
    actions = torch.randint(0, 8, (total,), generator=generator)
    longest = int(OFFSETS.diff().max())
    return x, Layout(OFFSETS, longest, context_lengths=CONTEXT, target_lengths=TARGETS, actions=actions)


def by_hand(stack: StreamedStack, x: Tensor, actions: Tensor, part: tuple[int, int, int]) -> dict[int, Tensor]:
    """One sequence with lists: the fused vector of every token that all streams have one for."""
    c, h, t = part
    found: dict[int, list[Tensor]] = {token: [] for token in range(c + h + t)}
    for number, (name, own) in enumerate(stack.stacks()):
        events = [i for i in range(c, c + h) if bool(stack.rules[name].members(actions[i]))]
        limit = stack.limits[name]
        read = events if limit is None else events[-limit:]
        tokens = [*range(c), *read, *range(c + h, c + h + t)]
        layout = Layout(
            torch.tensor([0, len(tokens)]),
            len(tokens),
            context_lengths=torch.tensor([c]),
            target_lengths=torch.tensor([t]),
        )
        out = own.hidden(x[tokens], layout)
        kept = tokens if out.rows is None else [tokens[row] for row in out.rows.tolist()]
        vectors = dict(zip(kept, out.values, strict=True))
        for token, parts in found.items():
            before = [i for i in events if i <= token]
            if token < c or token >= c + h:
                parts.append(vectors[token])
            elif not before:
                parts.append(stack.empty[number])
            elif before[-1] in vectors:
                parts.append(vectors[before[-1]])
    full = {token: parts for token, parts in found.items() if len(parts) == len(stack.streams)}
    return {token: stack.fusion([p[None] for p in parts])[0] for token, parts in full.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_it_equals_its_definition(name: str) -> None:
    stack, (x, layout) = stack_of(OPTIONS[name]), inputs()
    assert layout.actions is not None
    hidden = stack.hidden(x, layout)
    rows, expected = [], []
    for b, part in enumerate(PARTS):
        start, stop = int(OFFSETS[b]), int(OFFSETS[b + 1])
        found = by_hand(stack, x[start:stop], layout.actions[start:stop], part)
        rows += [start + token for token in found]
        expected += list(found.values())
    assert (list(range(len(x))) if hidden.rows is None else hidden.rows.tolist()) == rows
    torch.testing.assert_close(hidden.values, torch.stack(expected), rtol=1e-9, atol=1e-9)
    assert (hidden.rows is None) == (name in ("concat", "sum", "three"))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_newest_vector_is_the_newest_row(name: str) -> None:
    stack, (x, layout) = stack_of(OPTIONS[name]), inputs()
    found, expected = stack.newest(x, layout), stack.hidden(x, layout).newest()
    has_history = HISTORY > 0
    torch.testing.assert_close(found[has_history], expected[has_history], rtol=1e-9, atol=1e-9)


def test_one_stream_of_all_actions_is_the_plain_stack() -> None:
    streamed = build(streams={"all_of_it": {"actions": ["all"]}})
    plain = build()
    weights = {
        name.replace("stack.streams.all_of_it.", "stack."): value
        for name, value in streamed.state_dict().items()
        if name != "stack.empty"
    }
    plain.load_state_dict(weights)
    batch = together(histories([12, 1, 5]))
    assert torch.equal(streamed(batch), plain(batch))
    assert torch.equal(streamed.user_vectors(batch), plain.user_vectors(batch))


@pytest.mark.parametrize("name", ["concat", "sum", "three"])
def test_a_later_event_cannot_change_an_earlier_query(name: str) -> None:
    """Neither what it was nor what was done: positions and streams of earlier events do not depend on it."""
    model, batch = build(**OPTIONS[name]), together(histories([10]))
    assert batch.actions is not None
    before = model(batch)
    for changed in range(10):
        items, actions = batch.items.clone(), batch.actions.clone()
        items[changed] = (items[changed] + 1) % NUM_ITEMS
        actions[changed] = 7 - actions[changed]
        assert torch.equal(before[:changed], model(replace(batch, items=items))[:changed])
        # An event that moves to another stream changes the shapes of products, and so their last bits.
        after = model(replace(batch, items=items, actions=actions))
        torch.testing.assert_close(before[:changed], after[:changed], rtol=0, atol=1e-12)
        assert not torch.allclose(before[changed:], after[changed:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["short", "truncated"])
def test_a_later_item_cannot_change_an_earlier_query_where_streams_are_cut(name: str) -> None:
    model, batch = build(**OPTIONS[name]), together(histories([12]))
    before = model.queries(batch)
    assert before.rows is not None
    for changed in range(12):
        items = batch.items.clone()
        items[changed] = (items[changed] + 1) % NUM_ITEMS
        after = model.queries(replace(batch, items=items))
        earlier = before.rows < changed
        assert torch.equal(before.vectors[earlier], after.vectors[earlier])


def test_an_event_changes_the_queries_of_its_own_stream_alone() -> None:
    model = build(streams={"consumption": {"actions": ["view"]}, "engagement": {"actions": ["like"]}}, fusion="sum")
    batch = replace(together(histories([6])), actions=torch.tensor([1, 2, 1, 0, 1, 2]))
    items = batch.items.clone()
    items[3] = (items[3] + 1) % NUM_ITEMS  # no action: in no stream
    assert torch.equal(model(batch), model(replace(batch, items=items)))


@pytest.mark.parametrize("name", OPTIONS)
def test_streams_without_an_event_are_a_learned_vector(name: str) -> None:
    """A user, and a whole batch, that never did what a stream is for."""
    model = build(**OPTIONS[name])
    lazy, busy = histories([5, 7])
    assert lazy.actions is not None
    lazy = replace(lazy, actions=torch.zeros_like(lazy.actions))
    batch = together([lazy, busy])
    vectors = model.user_vectors(batch)
    assert vectors.isfinite().all()
    torch.testing.assert_close(vectors[0], model.user_vectors(lazy)[0])
    found = model.queries(batch)
    last = 4 if found.rows is None else found.rows.tolist().index(4)
    torch.testing.assert_close(vectors[0], found.vectors[last].float())


def test_gradients_reach_every_parameter_and_every_event_of_a_stream() -> None:
    stack, (x, layout) = stack_of(OPTIONS["concat"]), inputs()
    x.requires_grad_()
    stack.hidden(x, layout).values.square().sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(1) > 0).all()
    for name, parameter in stack.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_fusion_starts_as_the_sum() -> None:
    torch.manual_seed(0)
    values = {"width": 16, "heads": 2, **OPTIONS["concat"]}
    stack = RetrieverConfig.model_validate(values).build(NUM_ITEMS, ACTIONS).stack
    assert isinstance(stack, StreamedStack)
    parts = [torch.randn(3, 16), torch.randn(3, 16)]
    assert torch.equal(stack.fusion(parts), parts[0] + parts[1])


def test_rules_of_streams() -> None:
    actions = torch.tensor([0, 1, 2, 4, 3])
    known = ("view", "like", "buy")
    for given, members in [
        (("view",), [False, True, False, False, True]),
        ((1, "buy"), [False, False, True, True, True]),
        (("none",), [True, False, False, False, False]),
        (("all",), [True] * 5),
    ]:
        assert StreamConfig(actions=given).rule("s", known).members(actions).tolist() == members


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"streams": {"engagement": {"layers": 2}}}, "streams.engagement.actions: Field required"),
        ({"streams": {"engagement": {"actions": []}}}, "streams.engagement.actions"),
        ({"streams": {"engagement": {"actions": [62]}}}, "62 is not one of 0 to 61"),
        ({"streams": {"a.b": {"actions": ["like"]}}}, "cannot be named 'a.b'"),
        ({"streams": {"items": {"actions": ["like"]}}}, "cannot be named 'items'"),
        ({"streams": {"a": {"actions": ["like"]}}, "kind": "sasrec"}, "set kind hstu"),
        ({"fusion": "sum"}, "model.yaml: fusion sum joins streams, and there are none: set streams"),
        ({"streams": {"a": {"actions": ["like"], "truncation": {"layers": 1}}}}, "truncation.length: Field required"),
    ],
)
def test_half_set_options_are_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse(RetrieverConfig, values, "model.yaml")


def test_an_action_the_data_does_not_have_is_named_with_those_it_has() -> None:
    config = RetrieverConfig.model_validate({"streams": {"engagement": {"actions": ["likes"]}}})
    with pytest.raises(InputError, match=r"streams\.engagement\.actions: no action 'likes' \(did you mean 'like'\?\)"):
        config.build(NUM_ITEMS, ACTIONS)
    with pytest.raises(InputError, match="the data has no actions"):
        config.build(NUM_ITEMS)


def test_a_batch_without_actions_is_refused() -> None:
    model = build(**OPTIONS["concat"])
    batch = replace(together(histories([4])), actions=None)
    for call in (model.queries, model.user_vectors):
        with pytest.raises(InputError, match="--action"):
            call(batch)
