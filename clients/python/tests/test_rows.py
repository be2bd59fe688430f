"""Rows are found by what changes say of them."""

from typing import Any

from pg_tide_client.rows import Rows


def rows(*all_: dict[str, Any]) -> Rows:
    rows = Rows()
    for row in all_:
        rows.add(dict(row))
    return rows


def test_a_row_is_found_by_its_key() -> None:
    some = rows({"id": 1, "a": "x"}, {"id": 2, "a": "y"})
    assert some.remove({"id": 3}) is None
    assert some.replace({"id": 1}, {"id": 5, "a": "z"}, None) == {"id": 1, "a": "x"}
    assert some.remove({"id": 1}) is None
    assert some.remove({"id": 5}) == {"id": 5, "a": "z"}
    assert list(some) == [{"id": 2, "a": "y"}]


def test_of_equal_rows_one_is_meant() -> None:
    some = rows({"a": 1, "b": None}, {"a": 1, "b": None}, {"a": 1, "b": 2})
    assert some.remove({"a": 1, "b": None}) is not None
    assert list(some) == [{"a": 1, "b": None}, {"a": 1, "b": 2}]
    # A column that a row does not have is not one that is null.
    assert some.remove({"a": 1, "b": None, "c": None}) is None


def test_what_an_update_leaves_out_stays() -> None:
    some = rows({"id": 1, "long": "x", "gone": "y"})
    some.replace({"id": 1}, {"id": 1, "n": 2}, ["long"])
    assert list(some) == [{"id": 1, "n": 2, "long": "x"}]
    some.replace({"id": 1}, {"id": 1, "n": 3}, None)
    assert list(some) == [{"id": 1, "n": 3, "long": "x"}]


def test_other_columns_may_tell_rows_apart_later() -> None:
    some = rows({"id": 1, "k": "a"}, {"id": 2, "k": "b"})
    assert some.remove({"id": 1}) is not None
    some.add({"id": 3, "k": "c"})
    assert some.remove({"k": "c"}) == {"id": 3, "k": "c"}
    some.clear()
    assert len(some) == 0
    assert some.replace({"id": 1}, {"id": 1}, []) is None
    assert len(some) == 1
