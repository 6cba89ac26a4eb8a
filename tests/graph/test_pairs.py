"""Pairs keep the order and the ids of the input; unknown nodes are -1."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from thrifty.errors import DataError
from thrifty.graph.pairs import node_numbers, read_pairs

TEXTS = np.array(["b", "a", "c"], dtype=object)
NUMBERS = np.array([10, 30, 20])


def test_every_row_stays_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("source,target\nb,a\na,zoe\n,b\nb,a\n\n")
    pairs = read_pairs(path, TEXTS)
    assert pairs.source.tolist() == [0, 1, -1, 0]
    assert pairs.target.tolist() == [1, -1, 0, 1]
    assert pairs.target_id.tolist() == ["a", "zoe", "b", "a"]
    assert pairs.is_known.tolist() == [True, False, False, True]
    said = "\n".join(pairs.notes)
    assert "2 of 4 pairs have a node that the graph does not have" in said
    assert "1 row without a source" in said
    assert "1 blank line left out" in said


def test_numbers_are_found_whatever_their_order(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("10,30\n30,20\n20,11\nx,10\n")
    pairs = read_pairs(path, NUMBERS)
    assert pairs.source.tolist() == [0, 1, 2, -1]
    assert pairs.target.tolist() == [1, 2, -1, 0]
    assert pairs.source_id.tolist() == ["10", "30", "20", "x"]


def test_numbers_can_name_nodes_that_are_texts() -> None:
    frame = pl.DataFrame({"u": [1, 2], "v": [2, 9]})
    pairs = read_pairs(frame, np.array(["1", "2"], dtype=object))
    assert pairs.source.tolist() == [0, 1]
    assert pairs.target.tolist() == [1, -1]


def test_a_sign_that_is_told_is_kept() -> None:
    pairs = read_pairs(pl.DataFrame({"u": [10], "v": [20], "sign": [-1]}), NUMBERS)
    assert pairs.sign is not None
    assert pairs.sign.tolist() == [-1.0]
    assert pairs.notes == []


def test_numbers_of_nodes_of_no_ids() -> None:
    assert node_numbers(pl.Series([5, None], dtype=pl.Int64), np.zeros(0, dtype=np.int64)).tolist() == [-1, -1]
    assert node_numbers(pl.Series([], dtype=pl.String), TEXTS).tolist() == []


def test_no_pairs_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("source,target\n\n")
    for origin in (tmp_path / "pairs.csv", pl.DataFrame({"source": [], "target": []})):
        for names in (NUMBERS, TEXTS):
            pairs = read_pairs(origin, names)
            assert (pairs.num_pairs, len(pairs.source_id), len(pairs.is_known)) == (0, 0, 0)


def test_pairs_need_two_columns() -> None:
    with pytest.raises(DataError, match="no column for the target"):
        read_pairs(pl.DataFrame({"source": [1]}), NUMBERS)
