"""Features of pairs: described as if the edge between them were not known."""

from dataclasses import replace

import numpy as np
import pytest

from thrifty.graph import features
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.signed import SignedGraph


@pytest.mark.parametrize("reach", [2, 3])
def test_there_is_a_name_for_every_column(graph: SignedGraph, reach: int) -> None:
    values = features.pair_features(Neighbours.of(graph), graph.source, graph.target, reach)
    names = features.feature_names(reach)
    assert values.shape == (graph.num_edges, len(names))
    assert len(set(names)) == len(names) == {2: 30, 3: 62}[reach]
    assert np.isfinite(values).all()


def test_an_edge_is_described_as_if_it_were_not_there(graph: SignedGraph) -> None:
    whole = features.pair_features(Neighbours.of(graph), graph.source, graph.target, 2)
    for edge in range(0, graph.num_edges, 20):
        without = Neighbours.of(graph.take(np.arange(graph.num_edges) != edge))
        alone = features.pair_features(without, graph.source[[edge]], graph.target[[edge]], 2)
        assert np.allclose(whole[edge], alone[0])


def test_degrees_are_counts_of_the_other_edges() -> None:
    graph = SignedGraph.of(np.array([0, 0, 2, 1]), np.array([1, 2, 1, 0]), np.array([1, -1, -1, 1]))
    counts = features.degrees(Neighbours.of(graph), np.array([0, 2], dtype=np.int32), np.array([1, 0], dtype=np.int32))
    assert counts.tolist() == [[0, 1, 0, 1, 1, 0, 1, 0], [0, 1, 1, 0, 1, 1, 0, 1]]


def test_the_reverse_edge_is_known(graph: SignedGraph) -> None:
    names = features.feature_names(2)
    values = features.pair_features(Neighbours.of(graph), graph.target, graph.source, 2)
    assert (values[:, names.index("v->u +")] == (graph.sign > 0)).all()
    other = replace(graph, sign=-graph.sign)
    flipped = features.pair_features(Neighbours.of(other), graph.target, graph.source, 2)
    assert (flipped[:, names.index("v->u -")] == (graph.sign > 0)).all()
