"""Balance: triangles against the products of matrices, and kept up to date."""

import numpy as np
import pytest

from thrifty import data
from thrifty.errors import SettingError
from thrifty.graph.balance import LiveBalance, balance, triangles
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.paths import two_paths
from thrifty.graph.signed import SignedGraph


def products(graph: SignedGraph) -> tuple[np.ndarray, np.ndarray]:
    """P = S S and Q = W W."""
    sign = np.zeros((graph.num_nodes, graph.num_nodes), dtype=int)
    sign[graph.source, graph.target] = graph.sign
    both, ways = sign + sign.T, abs(sign) + abs(sign.T)
    return both @ both, ways @ ways


def every_pair(graph: SignedGraph) -> tuple[np.ndarray, np.ndarray]:
    source, target = np.nonzero(~np.eye(graph.num_nodes, dtype=bool))
    return source.astype(np.int32), target.astype(np.int32)


def test_paths_are_those_of_the_matrix_products(graph: SignedGraph) -> None:
    source, target = every_pair(graph)
    signed, weighted = two_paths(Neighbours.of(graph), source, target)
    expected_signed, expected_weighted = products(graph)
    assert (signed == expected_signed[source, target]).all()
    assert (weighted == expected_weighted[source, target]).all()


def test_the_other_sign_turns_balanced_into_unbalanced(graph: SignedGraph) -> None:
    neighbours = Neighbours.of(graph)
    one = balance(neighbours, graph.source, graph.target, graph.sign)
    other = balance(neighbours, graph.source, graph.target, -graph.sign)
    assert (one[0] == other[1]).all()
    assert (one[1] == other[0]).all()
    assert one[1].sum() > 0


def test_triangles_are_told_apart() -> None:
    source, target = np.array([0, 1, 2, 2, 3, 0, 4, 0, 4]), np.array([1, 2, 0, 3, 0, 3, 0, 4, 1])
    sign = np.array([1, 1, 1, 1, -1, -1, 1, -1, 1])
    assert triangles(Neighbours.of(SignedGraph.of(source, target, sign))) == (1, 1, 1)


def test_counts_stay_right_while_edges_come_and_go(graph: SignedGraph) -> None:
    chance = np.random.default_rng(0)
    source, target = every_pair(graph)
    spare = chance.choice(len(source), 200, replace=False)
    live = LiveBalance.of(graph, source[spare], target[spare])
    sign = np.zeros((graph.num_nodes, graph.num_nodes), dtype=int)
    sign[graph.source, graph.target] = graph.sign
    for step in range(300):
        place = spare[step % 200]
        u, v, change = int(source[place]), int(target[place]), int(chance.integers(-1, 2))
        live.set(u, v, change)
        sign[u, v] = change
    now = SignedGraph.of(*np.nonzero(sign), sign[np.nonzero(sign)], graph.num_nodes)
    assert now.num_edges != graph.num_edges
    asked = (source[spare], target[spare], np.ones(200, dtype=np.int8))
    expected = balance(Neighbours.of(now), *asked)
    found = live.counts(*asked)
    assert (found[0] == expected[0]).all()
    assert (found[1] == expected[1]).all()


def test_a_pair_without_room_is_refused(graph: SignedGraph) -> None:
    none = np.zeros(0, dtype=np.int32)
    live = LiveBalance.of(graph.take(np.arange(5)), none, none)
    u, v = graph.source[20], graph.target[20]
    with pytest.raises(SettingError, match="spare"):
        live.set(int(u), int(v), 1)
    with pytest.raises(SettingError, match="neither connected nor spare"):
        live.counts(graph.source[20:21], graph.target[20:21], graph.sign[20:21])


@pytest.mark.skipif(not data.is_here("slashdot"), reason="the data set slashdot is not on this machine")
def test_triangles_of_slashdot_are_as_many_as_published() -> None:
    import polars

    edges = polars.read_csv(data.find("slashdot")[0])
    columns = [edges[name].to_numpy() for name in ("source", "target", "sign")]
    assert sum(triangles(Neighbours.of(SignedGraph.of(*columns)))) == 579_565
