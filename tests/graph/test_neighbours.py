"""Neighbours: both directions of every edge, once each."""

import numpy as np

from thrifty.graph.neighbours import NOTHING, Neighbours
from thrifty.graph.signed import SignedGraph


def test_every_relation_is_what_the_edges_say(graph: SignedGraph) -> None:
    neighbours = Neighbours.of(graph)
    sign = np.zeros((graph.num_nodes, graph.num_nodes), dtype=int)
    sign[graph.source, graph.target] = graph.sign
    found = np.full_like(sign, NOTHING)
    for u in range(graph.num_nodes):
        part = slice(neighbours.start[u], neighbours.start[u + 1])
        assert (np.diff(neighbours.node[part]) > 0).all()
        found[u, neighbours.node[part]] = neighbours.relation[part]
    assert (found == 3 * (sign + 1) + sign.T + 1).all()
    assert neighbours.degree.sum() == (found != NOTHING).sum()


def test_a_graph_without_edges_has_no_neighbours() -> None:
    none = np.zeros(0, dtype=np.int32)
    neighbours = Neighbours.of(SignedGraph.of(none, none, none, num_nodes=3))
    assert neighbours.num_nodes == 3
    assert neighbours.degree.tolist() == [0, 0, 0]
