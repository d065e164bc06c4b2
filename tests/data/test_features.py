"""Features of items and users, aligned to the ids of the log."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longview.data.features import Features, read_features
from longview.errors import InputError
from tests.data.logs import write

IDS = pl.Series(["1", "2", "30"])


def features(tmp_path: Path, text: str, name: str = "items.csv", **options: str) -> Features:
    return read_features(write(tmp_path / name, text), IDS, "item", **options)  # type: ignore[arg-type]


def test_titles_and_categories_are_found_under_any_name_and_aligned(tmp_path: Path) -> None:
    found = features(tmp_path, "asin,product_title,genres,price\n30,Thirty,b|c,1.5\n1,One,a,2\n9,Nine,,3\n")
    assert found.table.to_pydict() == {
        "id": ["1", "2", "30"],
        "title": ["One", None, "Thirty"],
        "category": [["a"], None, ["b", "c"]],
        "price": [2.0, None, 1.5],
    }
    assert (found.missing, found.unused, found.repeated, found.id_column) == (1, 1, 0, "asin")
    assert str(found.table.schema.field("category").type).startswith("list<")


def test_columns_that_were_named_win(tmp_path: Path) -> None:
    text = "item_id,title,label,genres,group\n1,a,One,x,p\n"
    found = features(tmp_path, text, title="label", category="group")
    row = found.table.to_pylist()[0]
    assert (row["title"], row["category"], row["title_feature"], row["genres"]) == ("One", ["p"], "a", "x")
    with pytest.raises(InputError, match="no column 'lable' \\(did you mean 'label'\\?\\)"):
        features(tmp_path, text, title="lable")


def test_the_id_column_is_the_one_the_log_uses(tmp_path: Path) -> None:
    found = features(tmp_path, "item_id,sku\n9,1\n9,2\n", id_column="sku")
    assert found.table["item_id"].to_pylist() == [9, 9, None]


def test_movielens_titles_give_a_year(tmp_path: Path) -> None:
    found = features(tmp_path, "1::Toy Story (1995)::Animation|Comedy\n2::Heat (1995)::Action\n", "movies.dat")
    assert found.table["year"].to_pylist() == [1995, 1995, None]
    assert found.table["title"].to_pylist()[0] == "Toy Story (1995)"


def test_recbole_sequences_are_lists_and_tokens_are_text(tmp_path: Path) -> None:
    text = "item_id:token\tname:token_seq\tclass:token_seq\tyear:token\n1\tToy Story\tA B\t1995\n"
    row = features(tmp_path, text, "x.item").table.to_pylist()[0]
    assert row == {"id": "1", "title": "Toy Story", "category": ["A", "B"], "year": "1995"}


def test_nested_columns_of_parquet_are_kept(tmp_path: Path) -> None:
    table = pa.table(
        {"item_id": [30, 1], "categories": [["a", "b"], []], "title": pa.array(["x", "y"]).dictionary_encode()}
    )
    pq.write_table(table, tmp_path / "items.parquet")
    found = read_features(tmp_path / "items.parquet", IDS, "item")
    assert found.table.to_pydict() == {
        "id": ["1", "2", "30"],
        "category": [[], None, ["a", "b"]],
        "title": ["y", None, "x"],
    }


def test_the_first_row_of_an_id_counts(tmp_path: Path) -> None:
    found = features(tmp_path, "item_id,title\n1,first\n1,second\n")
    assert found.table["title"].to_pylist()[0] == "first"
    assert found.repeated == 1


def test_user_features_keep_their_names(tmp_path: Path) -> None:
    found = read_features(write(tmp_path / "users.csv", "uid,name,length\n1,Ann,7\n"), IDS, "user")
    assert found.table.column_names == ["id", "name", "length_feature"]  # `length` is a column of users.arrow itself


def test_a_file_that_covers_nothing_is_refused_with_both_kinds_of_ids(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of its 1 ids \(column 'item_id', such as 'B01'\).*such as '1'"):
        features(tmp_path, "item_id,title\nB01,x\n")


def test_an_empty_id_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 2: column 'item_id' is empty"):
        features(tmp_path, "item_id,title\n1,x\n,y\n")


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is a header but no rows"):
        features(tmp_path, "item_id,title\n")
