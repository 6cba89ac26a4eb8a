"""Columns are found by their usual names, or as told."""

import pytest

from thrifty.errors import DataError
from thrifty.graph.columns import Columns, find_columns, looks_like_header


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["source", "target", "sign"], {"source": 0, "target": 1, "sign": 2}),
        (["SRC", "Dst", "Vote"], {"source": 0, "target": 1, "sign": 2}),
        (["from_id", "To ID", "Polarity", "w"], {"source": 0, "target": 1, "sign": 2, "weight": 3}),
        (["u", "v", "rating", "t"], {"source": 0, "target": 1, "rating": 2, "time": 3}),
        (["s", "t", "sign"], {"source": 0, "target": 1, "sign": 2}),
        (["rating", "ratee", "rater"], {"source": 2, "target": 1, "rating": 0}),
    ],
)
def test_usual_names_are_found(names: list[str], places: dict[str, int]) -> None:
    assert find_columns(names, Columns(), "x.csv").places == places


def test_a_told_column_wins_over_a_usual_name() -> None:
    found = find_columns(["a", "b", "sign", "stars"], Columns(source="a", target="B", rating="stars"), "x.csv")
    assert found.places == {"source": 0, "target": 1, "rating": 3}
    assert "not used" in found.notes[0]


def test_a_weight_stands_in_for_a_missing_sign_and_this_is_told() -> None:
    found = find_columns(["u", "v", "weight"], Columns(), "x.csv")
    assert found.places["rating"] == 2
    assert "taken as a rating" in found.notes[0]


@pytest.mark.parametrize(
    ("names", "asked", "told"),
    [
        (["source", "sign"], Columns(), r"no column for the target; found 'source', 'sign'; name a column target \("),
        (["source", "target"], Columns(), r"sign \(sign.*or rating \(rating"),
        (["source", "target", "sign"], Columns(time="when"), "no column 'when' for the time; it has 'source'"),
    ],
)
def test_a_missing_column_is_named_with_what_would_do(names: list[str], asked: Columns, told: str) -> None:
    with pytest.raises(DataError, match=told):
        find_columns(names, asked, "x.csv")


def test_pairs_need_no_sign() -> None:
    assert find_columns(["source", "target"], Columns(), "x.csv", needs_sign=False).places == {"source": 0, "target": 1}


def test_a_header_names_columns_and_holds_no_numbers() -> None:
    assert looks_like_header(["source", "target", "1"])
    assert looks_like_header(["who", "whom", "how"])
    assert not looks_like_header(["1", "2", "-1"])
    assert not looks_like_header(["anna", "ben", "\u22121"])
    assert not looks_like_header(["anna", "ben", "+"])
