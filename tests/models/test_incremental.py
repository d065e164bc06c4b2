"""The incremental form gives what a full pass gives, for every topology, and says so where it could not."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longview.data.batches import JaggedBatch
from longview.errors import InputError
from longview.models.incremental import Incremental, why_not_incremental
from longview.models.retriever import Retriever
from longview.models.state import UserState
from longview.ops.jagged import offsets_from_lengths
from tests.models.histories import WINDOW, build, histories, piece, together

INPUT = {"positions": "start", "time_gaps": "previous"}
STREAMS = {"consumption": {"actions": ["view", "none"]}, "engagement": {"actions": ["like", "buy"]}}
TOPOLOGIES: dict[str, dict[str, object]] = {
    "full": {},
    "prefix": {"attention": WINDOW},
    "window": {"attention": {**WINDOW, "global_size": 0}},
    "per head, concatenated": {"layer": {"norm": "head", "output": "concat", "activation": "u"}, "attention": WINDOW},
    "truncated": {"attention": WINDOW, "truncation": {"length": 6, "layers": 2, "positions": True}},
    "two stages": {
        "attention": {**WINDOW, "target_scope": "full"},
        "truncation": {
            "length": 6,
            "layers": 2,
            "targets": "second",
            "attention": {"local_window": 2, "global_size": 2, "global_mode": "recent"},
        },
    },
    "streams": {"streams": STREAMS, "attention": WINDOW},
    "truncated streams": {
        "streams": {**STREAMS, "buys": {"actions": ["buy"], "truncation": {"length": 2, "layers": 1}}},
        "fusion": "sum",
    },
    "relative bias": {"attention": {**WINDOW, "position_bias": True, "time_bias": True}},
    "timed second stage": {
        "attention": {**WINDOW, "time_bias": True},
        "truncation": {"length": 6, "layers": 1, "attention": {"time_bias": True}},
    },
}
SCORED = [name for name in TOPOLOGIES if name != "relative bias"]
HISTORIES = histories([23, 1, 40, 7])


def model_of(name: str, **options: object) -> Retriever:
    return build(embedding=INPUT, **{**TOPOLOGIES[name], **options})


def appended(incremental: Incremental, cuts: list[list[int]]) -> UserState:
    """Return the state after HISTORIES, prefilled to each user's first cut and appended at the others."""
    ends = [[*sorted(min(c, h.num_tokens) for c in row), h.num_tokens] for row, h in zip(cuts, HISTORIES, strict=True)]
    state = incremental.prefill(together([piece(h, 0, row[0]) for h, row in zip(HISTORIES, ends, strict=True)]))
    for step in range(1, len(ends[0])):
        events = [piece(h, row[step - 1], row[step]) for h, row in zip(HISTORIES, ends, strict=True)]
        state = incremental.append(state, together(events))
    return state


def vectors(model: Retriever, batch: JaggedBatch) -> torch.Tensor:
    """Return user vectors in the model's own precision."""
    with torch.no_grad():
        return model.finish(model.stack.newest(*model.sequences(batch)))


@pytest.mark.parametrize("name", TOPOLOGIES)
@settings(max_examples=4, deadline=None)
@given(cuts=st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=4, max_size=4))
def test_any_split_into_appends_equals_the_full_pass(name: str, cuts: list[list[int]]) -> None:
    model = model_of(name)
    found = Incremental(model).vectors(appended(Incremental(model), cuts))
    torch.testing.assert_close(found, model.user_vectors(together(HISTORIES)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_float64_agrees_to_its_last_digits(name: str) -> None:
    """Event by event, so that nothing hides behind a tolerance."""
    model = model_of(name)
    incremental, history = Incremental(model), HISTORIES[0]
    state = incremental.prefill(piece(history, 0, 0))
    for number in range(history.num_tokens):
        state = incremental.append(state, piece(history, number, number + 1))
    expected = vectors(model, history)
    torch.testing.assert_close(incremental.queries(state), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_float32_agrees_to_a_millionth(name: str) -> None:
    model = build(double=False, embedding=INPUT, **TOPOLOGIES[name])
    incremental = Incremental(model)
    found = incremental.vectors(appended(incremental, [[10, 20], [0, 0], [30, 30], [6, 7]]))
    expected = model.user_vectors(together(HISTORIES))
    assert (found - expected).norm() <= 2e-6 * expected.norm()


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("micro_batch", [1, 4, 100])
def test_candidates_equal_targets_of_a_full_pass(name: str, micro_batch: int) -> None:
    model = model_of(name)
    incremental = Incremental(model)
    counts = [3, 0, 9, 2]
    asked = []
    for history, count, drawn in zip(HISTORIES, counts, histories(counts, seed=5), strict=True):
        assert history.timestamps is not None
        assert drawn.timestamps is not None
        asked.append(replace(drawn, timestamps=torch.full_like(drawn.timestamps, int(history.timestamps[-1]) + 60)))
        assert asked[-1].num_tokens == count
    pairs = zip(HISTORIES, asked, strict=True)
    whole = together([together([h, a]) for h, a in pairs])
    offsets = offsets_from_lengths(
        torch.tensor([h.num_tokens + a.num_tokens for h, a in zip(HISTORIES, asked, strict=True)])
    )
    whole = replace(whole, offsets=offsets, target_lengths=torch.tensor(counts))
    with torch.no_grad():
        expected = model.hidden(whole).targets(sum(counts))
    state = appended(incremental, [[10, 20], [0, 0], [30, 30], [6, 7]])
    found = incremental.candidates(state, together(asked), micro_batch=micro_batch)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    again = incremental.candidates(state, together(asked), micro_batch=micro_batch)
    assert torch.equal(found, again)  # the state is as it was


@pytest.mark.parametrize("name", ["prefix", "truncated", "two stages"])
def test_a_windowed_state_has_one_size_however_long_the_history(name: str) -> None:
    model = model_of(name)
    incremental, (history,) = Incremental(model), histories([300], seed=3)
    state = incremental.prefill(piece(history, 0, 30))
    size = state.nbytes
    assert state.streams["history"].cache.keys.shape[0] == 5 + 3  # K1 + K2
    for start in range(30, 300, 27):
        state = incremental.append(state, piece(history, start, start + 27))
        assert state.nbytes == size
    assert incremental.prefill(history).nbytes == size
    torch.testing.assert_close(incremental.vectors(state), model.user_vectors(history), rtol=1e-6, atol=1e-6)


def test_states_are_stored_taken_and_put_together() -> None:
    incremental = Incremental(model_of("truncated streams"))
    state = appended(incremental, [[10, 20], [0, 0], [30, 30], [6, 7]])
    expected = incremental.vectors(state)
    loaded = UserState.load(state.save()).to("cpu")
    assert torch.equal(incremental.vectors(loaded), expected)
    order = [2, 0, 3, 1]
    single = [state.take(torch.tensor([user])) for user in order]
    joined = UserState.join(single)
    assert torch.equal(incremental.vectors(joined), expected[order])
    assert sum(one.nbytes for one in single) > state.nbytes  # offsets of their own
    assert torch.equal(incremental.vectors(single[0]), expected[2:3])


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: data[9:]])
def test_damaged_bytes_are_refused(damage: object) -> None:
    incremental = Incremental(model_of("prefix"))
    data = incremental.prefill(together(HISTORIES)).save()
    assert callable(damage)
    with pytest.raises(InputError, match="prefill again"):
        UserState.load(damage(data))


def test_states_of_different_models_are_not_put_together() -> None:
    first = Incremental(model_of("prefix")).prefill(HISTORIES[0])
    for other in (model_of("streams"), model_of("prefix", width=8)):
        with pytest.raises(InputError, match="model"):
            UserState.join([first, Incremental(other).prefill(HISTORIES[0])])
    with pytest.raises(InputError, match="one or more"):
        UserState.join([])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"embedding": {"positions": True}}, "positions start or false"),
        ({"embedding": {"positions": "newest"}}, "positions start or false"),
        ({"embedding": {**INPUT, "time_gaps": "newest"}}, "time_gaps previous or none"),
        ({"embedding": INPUT, "attention": {**WINDOW, "global_mode": "recent"}}, "global_mode prefix"),
        ({"embedding": INPUT, "streams": STREAMS, "attention": {**WINDOW, "global_mode": "recent"}}, "stream consump"),
        ({"embedding": INPUT, "kind": "sasrec"}, "no incremental form"),
    ],
)
def test_a_model_that_no_state_fits_says_why(options: dict[str, object], words: str) -> None:
    model = build(**options)
    assert words in str(why_not_incremental(model))
    with pytest.raises(InputError, match=words):
        Incremental(model)


def test_positions_counted_back_would_be_wrong() -> None:
    """Why the refusal: each event moves all earlier rows of such a model."""
    model, history = build(embedding={"positions": "newest"}), HISTORIES[0]
    shorter = piece(history, 0, 22)
    assert not torch.allclose(model(history)[:22], model(shorter), atol=1e-3)
    exact = model_of("full")
    torch.testing.assert_close(exact(history)[:22], exact(shorter), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": {**WINDOW, "target_scope": "full"}}, "target_scope semi_local"),
        ({"attention": {"position_bias": True}}, "position_bias"),
    ],
)
def test_candidates_that_a_state_cannot_serve_are_refused(options: dict[str, object], words: str) -> None:
    incremental = Incremental(build(embedding=INPUT, **options))
    state = incremental.prefill(HISTORIES[0])
    with pytest.raises(InputError, match=words):
        incremental.candidates(state, piece(HISTORIES[0], 0, 2))


def test_misuse_is_refused_with_the_remedy() -> None:
    model = model_of("prefix")
    incremental = Incremental(model)
    state = incremental.prefill(together([HISTORIES[0], piece(HISTORIES[1], 0, 0)]))
    with pytest.raises(InputError, match="user 1 of this state has no event"):
        incremental.vectors(state)
    with pytest.raises(InputError, match="1 users' events for a state of 2"):
        incremental.append(state, HISTORIES[0])
    with pytest.raises(InputError, match="no times"):
        incremental.append(state, replace(together(HISTORIES[:2]), timestamps=None))
    model.train()
    with pytest.raises(InputError, match="eval"):
        incremental.append(state, together(HISTORIES[:2]))


def test_a_stream_that_outgrows_its_length_must_be_prefilled_again() -> None:
    streams = {"consumption": {"actions": ["all"], "max_length": 5}}
    model = build(embedding={"positions": False}, streams=streams)
    incremental, history = Incremental(model), HISTORIES[3]
    state = incremental.append(incremental.prefill(piece(history, 0, 3)), piece(history, 3, 5))
    torch.testing.assert_close(incremental.vectors(state), model.user_vectors(piece(history, 0, 5)))
    with pytest.raises(InputError, match="prefill again"):
        incremental.append(state, piece(history, 5))
    again = incremental.prefill(history)
    torch.testing.assert_close(incremental.vectors(again), model.user_vectors(history))


def test_a_user_scores_alike_alone_and_in_company() -> None:
    incremental = Incremental(model_of("two stages"))
    state = incremental.prefill(together(HISTORIES))
    found = incremental.vectors(state)
    for number, history in enumerate(HISTORIES):
        alone = incremental.vectors(incremental.prefill(history))[0]
        torch.testing.assert_close(found[number], alone, rtol=1e-6, atol=1e-7)


def test_all_splits_of_a_short_history() -> None:
    model = model_of("truncated")
    incremental, history = Incremental(model), HISTORIES[3]
    expected = model.user_vectors(history)
    for size in range(3):
        for cuts in itertools.combinations(range(1, 7), size):
            state = incremental.prefill(piece(history, 0, cuts[0] if cuts else None))
            for start, stop in itertools.pairwise((*cuts, 7)):
                state = incremental.append(state, piece(history, start, stop))
            torch.testing.assert_close(incremental.vectors(state), expected, rtol=1e-6, atol=1e-6)
