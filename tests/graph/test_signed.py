"""A signed graph: what it holds, and what it refuses."""

import numpy as np
import pytest

from thrifty.errors import DataError
from thrifty.graph.signed import SignedGraph, pair_key

GRAPH = SignedGraph.of(np.array([0, 1, 2]), np.array([1, 0, 3]), np.array([1, -1, 1]))


def test_counts_and_share() -> None:
    assert (GRAPH.num_nodes, GRAPH.num_edges) == (4, 3)
    assert GRAPH.positive_share == pytest.approx(2 / 3)
    assert GRAPH.key.tolist() == [1, 4, 11]


def test_taken_edges_keep_all_nodes() -> None:
    part = GRAPH.take(np.array([True, False, True]))
    assert (part.num_nodes, part.num_edges) == (4, 2)
    assert part.sign.tolist() == [1, 1]


def test_joined_edges_follow_the_old_ones() -> None:
    more = GRAPH.joined(np.array([3]), np.array([2]), np.array([-1]))
    assert more.sign.tolist() == [1, -1, 1, -1]
    with pytest.raises(DataError, match="told twice"):
        GRAPH.joined(np.array([0]), np.array([1]), np.array([-1]))


def test_direction_matters_to_the_key() -> None:
    assert pair_key(np.array([1]), np.array([2]), 10) != pair_key(np.array([2]), np.array([1]), 10)


@pytest.mark.parametrize(
    ("source", "target", "sign", "told"),
    [
        ([0], [1], [7], r"\+1 or -1; found \[7\]"),
        ([0], [0], [1], "to itself"),
        ([0, 0], [1, 1], [1, -1], "told twice"),
        ([0, 1], [1], [1], "2 sources, 1 targets"),
        ([0], [9], [1], "numbered 0 to 4"),
    ],
)
def test_what_is_no_signed_graph_is_refused(source: list, target: list, sign: list, told: str) -> None:
    with pytest.raises(DataError, match=told):
        SignedGraph.of(np.array(source), np.array(target), np.array(sign), num_nodes=5 if 9 in target else None)
