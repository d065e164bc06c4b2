"""What `Recommender` promises, checked against a plain sort of every score."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from longview.data.dataset import PreparedData
from longview.errors import InputError
from longview.models.retriever import Retriever, RetrieverConfig
from longview.serving.recommender import Recommender
from tests.serving.conftest import NewestItem

NUM_ITEMS = 40


def history(data: PreparedData, user: int) -> list[int]:
    return [int(x) for x in data.items[data.offsets[user] : data.offsets[user + 1]]]


def ranking(recommender: Recommender, newest: int) -> list[int]:
    """All items, best first, for a user whose newest item is `newest`."""
    vectors = recommender.model.item_vectors().double()
    return [int(x) for x in (vectors @ vectors[newest]).argsort(descending=True, stable=True)]


def items_of(table: pa.Table, user: str) -> list[str]:
    return [row["item"] for row in table.to_pylist() if row["user"] == user]


def ids(items: list[int]) -> list[str]:
    return [f"i{n}" for n in items]


def test_known_users_get_the_best_items_they_have_not_seen(recommender: Recommender, data: PreparedData) -> None:
    table = recommender.recommend(users=["u3", "u7"], k=6)
    assert table.column_names == ["user", "item", "score", "rank", "title"]
    assert table["user"].to_pylist() == ["u3"] * 6 + ["u7"] * 6
    assert table["rank"].to_pylist() == [1, 2, 3, 4, 5, 6] * 2
    for user in (3, 7):
        seen = history(data, user)
        expected = [item for item in ranking(recommender, seen[-1]) if item not in seen][:6]
        assert items_of(table, f"u{user}") == ids(expected)
    titles = dict(zip(table["item"].to_pylist(), table["title"].to_pylist(), strict=True))
    assert all(title == f"Thing {item[1:]}" for item, title in titles.items())


def test_scores_are_the_inner_products_best_first(recommender: Recommender, data: PreparedData) -> None:
    rows = recommender.recommend(users=["u3"], k=5).to_pylist()
    vectors = recommender.model.item_vectors()
    query = vectors[history(data, 3)[-1]]
    np.testing.assert_allclose([r["score"] for r in rows], [float(vectors[int(r["item"][1:])] @ query) for r in rows])
    assert [r["score"] for r in rows] == sorted((r["score"] for r in rows), reverse=True)


def test_without_users_or_sequences_everybody_is_served(recommender: Recommender, data: PreparedData) -> None:
    everybody = recommender.recommend(k=3)
    assert everybody["user"].to_pylist() == [f"u{n}" for n in range(30) for _ in range(3)]
    assert everybody.equals(recommender.recommend(users=[f"u{n}" for n in range(30)], k=3))


def test_a_stranger_is_a_list_of_items(recommender: Recommender, data: PreparedData) -> None:
    known = recommender.recommend(users=["u3"], k=5)
    stranger = recommender.recommend(sequences=[ids(history(data, 3)), ["i1"]], k=5)
    assert items_of(stranger, "0") == items_of(known, "u3")
    assert len(items_of(stranger, "1")) == 5


def test_include_seen_lets_the_history_in(recommender: Recommender) -> None:
    table = recommender.recommend(sequences=[["i4", "i9"]], k=NUM_ITEMS, include_seen=True)
    assert items_of(table, "0") == ids(ranking(recommender, 9))


def test_seen_means_the_whole_history_also_beyond_what_the_model_reads(recommender: Recommender) -> None:
    long = ids(list(range(30)))
    with pytest.warns(UserWarning, match="fewer than 20 items"):
        table = recommender.recommend(sequences=[long], k=20)
    assert set(table["item"].to_pylist()) == set(ids(list(range(30, 40))))


def test_allow_and_deny_lists(recommender: Recommender, tmp_path: Path) -> None:
    allow, deny = ids([5, 6, 7, 8, 20]), ids([20, 21])
    expected = [x for x in ids(ranking(recommender, 9)) if x in allow]
    assert recommender.recommend(sequences=[["i9"]], k=5, allow=allow)["item"].to_pylist() == expected
    with_deny = recommender.recommend(sequences=[["i9"]], k=NUM_ITEMS - 3, deny=deny)["item"].to_pylist()
    assert with_deny == [x for x in ids(ranking(recommender, 9)) if x not in {*deny, "i9"}]
    file = tmp_path / "allow.txt"
    file.write_text("\ufeff" + "\n".join(allow) + "\n\n", encoding="utf-8")
    from_file = recommender.recommend(sequences=[["i9"]], k=5, allow=file)
    assert from_file["item"].to_pylist() == expected


def test_an_allow_list_shorter_than_k_gives_fewer_rows_and_says_so(recommender: Recommender) -> None:
    with pytest.warns(UserWarning, match="fewer than 5 items are left for 1 of 1"):
        table = recommender.recommend(sequences=[["i9"]], k=5, allow=["i1", "i2"])
    assert sorted(table["item"].to_pylist()) == ["i1", "i2"]


def test_listed_ids_that_the_catalogue_lacks_are_ignored_with_a_warning(recommender: Recommender) -> None:
    with pytest.warns(UserWarning, match="1 of 2 ids of the deny list are not in the catalogue.*'gone'"):
        recommender.recommend(sequences=[["i9"]], k=5, deny=["gone", "i1"])


@pytest.mark.parametrize("cap", [1, 2, 3])
def test_a_cap_keeps_the_best_of_each_category(recommender: Recommender, data: PreparedData, cap: int) -> None:
    colours = recommender.items["colour"].to_pylist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # someone may run out of colours
        table = recommender.recommend(k=10, max_per_category=cap, category="colour")
    for user in range(30):
        assert items_of(table, f"u{user}") == ids(greedy(recommender, data, user, 10, cap, [[c] for c in colours]))


def test_caps_look_as_far_down_the_ranking_as_they_must() -> None:
    """400 items, all but five of one category: the five come far down, and still all are found."""
    rare = [7, 150, 222, 301, 399]
    kinds = [f"rare {n}" if n in rare else "common" for n in range(400)]
    items = pa.table({"id": [f"i{n}" for n in range(400)], "category": kinds})
    vectors = torch.randn(400, 3, generator=torch.Generator().manual_seed(1))
    table = Recommender(NewestItem(vectors), items).recommend(sequences=[["i0"], ["i9"]], k=6, max_per_category=1)
    for user, newest in (("0", 0), ("1", 9)):
        order = [int(n) for n in (vectors @ vectors[newest]).argsort(descending=True) if int(n) != newest]
        first_common = next(n for n in order if n not in rare)
        assert items_of(table, user) == ids([n for n in order if n in rare or n == first_common])


def test_an_item_of_several_categories_needs_room_in_each(recommender: Recommender, data: PreparedData) -> None:
    tags = recommender.items["tags"].to_pylist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 3 × 4 tags at 2 each leave fewer than ten
        table = recommender.recommend(users=["u0", "u9"], k=10, max_per_category=2, category="tags")
    for user in (0, 9):
        assert items_of(table, f"u{user}") == ids(greedy(recommender, data, user, 10, 2, tags))


def greedy(
    recommender: Recommender, data: PreparedData, user: int, k: int, cap: int, categories: list[list[str | None]]
) -> list[int]:
    seen, counts, kept = history(data, user), dict[str, int](), list[int]()
    for item in ranking(recommender, seen[-1]):
        here = [c for c in categories[item] if c is not None]
        if item not in seen and len(kept) < k and all(counts.get(c, 0) < cap for c in here):
            kept.append(item)
            counts |= {c: counts.get(c, 0) + 1 for c in here}
    return kept


def test_similar_items_are_nearest_by_cosine_and_leave_the_item_out(recommender: Recommender) -> None:
    table = recommender.similar_items(["i3", "i8"], k=4)
    assert table.column_names == ["query", "item", "score", "rank", "title"]
    vectors = recommender.model.item_vectors().double()
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    for item in (3, 8):
        order = [int(x) for x in (vectors @ vectors[item]).argsort(descending=True) if int(x) != item][:4]
        assert [r["item"] for r in table.to_pylist() if r["query"] == f"i{item}"] == ids(order)
    assert max(table["score"].to_pylist()) <= 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"users": ["u99"]}, r"unknown user 'u99' \(did you mean 'u9'\?\)"),
        ({"users": ["zz", "yy"]}, r"unknown user 'zz'.*\(and 1 more\).*give a sequence of items"),
        ({"users": "u1"}, r"users are a list of ids, for example \['u1'\]"),
        ({"sequences": [["i1", "i400"]]}, r"unknown item 'i400' \(did you mean 'i40?'\?\)"),
        ({"sequences": [["Thing 12"]]}, r"item 'i12' has the title 'Thing 12': give the id"),
        ({"sequences": [["i1"], []]}, "sequence 1 is empty"),
        ({"sequences": ["i1"]}, "lists of item ids"),
        ({"sequences": [["i1", ("i2", 5)]]}, "give all or no times"),
        ({"sequences": [["i1"]], "users": ["u1"]}, "not both"),
        ({"sequences": [["i1"]], "k": 41}, "k=41 is outside 1 to 40, the number of items in the catalogue"),
        ({"sequences": [["i1"]], "k": 0}, "k=0 is outside"),
        ({"sequences": [["i1"]], "k": 2.5}, r"k=2\.5: a whole number"),
        ({"sequences": [["i1"]], "allow": ["i1", "i2"], "deny": ["i2"]}, "both the allow and the deny list.*'i2'"),
        ({"sequences": [["i1"]], "deny": [f"i{n}" for n in range(40)]}, "covers the whole catalogue"),
        ({"sequences": [["i1"]], "deny": Path("nowhere.txt")}, "deny list nowhere.txt: cannot be read"),
        ({"sequences": [["i1"]], "max_per_category": 1}, r"no column 'category'.*its columns: colour, tags"),
        ({"sequences": [["i1"]], "max_per_category": 1, "category": "color"}, "did you mean 'colour'"),
        ({"sequences": [["i1"]], "max_per_category": 0, "category": "colour"}, "at least 1"),
    ],
)
def test_bad_requests_are_explained(recommender: Recommender, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recommender.recommend(**arguments)


def test_similar_items_take_a_list(recommender: Recommender) -> None:
    with pytest.raises(InputError, match=r"items are a list of ids, for example \['i3'\]"):
        recommender.similar_items("i3")


def test_an_allow_list_of_strangers_is_an_error(recommender: Recommender) -> None:
    with pytest.warns(UserWarning, match="ignored"), pytest.raises(InputError, match="names no item"):
        recommender.recommend(sequences=[["i9"]], allow=["x"])


def test_without_a_data_set_sequences_still_work(recommender: Recommender) -> None:
    bare = Recommender(recommender.model, recommender.items)
    assert bare.recommend(sequences=[["i9"]], k=5).equals(recommender.recommend(sequences=[["i9"]], k=5))
    with pytest.raises(InputError, match="came without a data set"):
        bare.recommend(users=["u1"])


def test_nobody_asked_nobody_served(recommender: Recommender) -> None:
    assert recommender.recommend(users=[], k=3).num_rows == 0
    assert recommender.recommend(sequences=[], k=3).num_rows == 0


def timed_model() -> Retriever:
    torch.manual_seed(3)
    config = RetrieverConfig.model_validate(
        {"width": 8, "layers": 1, "heads": 1, "max_length": 6, "embedding": {"time_gaps": "newest"}}
    )
    return config.build(NUM_ITEMS)


def test_events_of_a_sequence_may_have_times(recommender: Recommender) -> None:
    model = Recommender(timed_model(), recommender.items)
    hour, year = 3_600, 31_536_000
    fresh = [("i1", 0), ("i2", hour)]
    stale = [("i1", 0), ("i2", year)]
    table = model.recommend(sequences=[fresh, stale], k=5, include_seen=True)
    assert table.num_rows == 10
    scores = np.array(table["score"].to_pylist()).reshape(2, 5)
    assert not np.array_equal(scores[0], scores[1])


def test_a_model_that_reads_times_says_so_when_it_gets_none(recommender: Recommender) -> None:
    model = Recommender(timed_model(), recommender.items)
    with pytest.warns(UserWarning, match="taken to happen at once"):
        bare = model.recommend(sequences=[["i1", "i2"]], k=5)
    assert bare.equals(model.recommend(sequences=[[("i1", 7), ("i2", 7)]], k=5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_recommends_the_same(data: PreparedData) -> None:
    torch.manual_seed(3)
    model = RetrieverConfig(width=16, layers=2, heads=2, max_length=6).build(NUM_ITEMS)
    items = data.item_table
    tables = [
        Recommender(model, items, data, device=device).recommend(
            k=5, deny=["i1"], max_per_category=3, category="colour"
        )
        for device in ("cpu", "cuda")
    ]
    assert tables[0].drop_columns(["score"]).equals(tables[1].drop_columns(["score"]))
    np.testing.assert_allclose(tables[0]["score"], tables[1]["score"], rtol=1e-4, atol=1e-5)
    similar = [Recommender(model, items, device=device).similar_items(["i3"], k=4) for device in ("cpu", "cuda")]
    assert similar[0]["item"].equals(similar[1]["item"])
