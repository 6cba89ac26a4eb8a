"""The masked network: an edge of the graph is judged as if its fold were not known."""

import numpy as np
import pytest
import torch

from thrifty.errors import SettingError
from thrifty.graph.scorers.masked_gnn import MaskedGnn, _Network, _View
from thrifty.graph.signed import SignedGraph
from thrifty.progress import silent

CPU = torch.device("cpu")
SMALL = MaskedGnn(dim=8, num_layers=2, rank=2, folds=4, epochs=3, device="cpu")


def some_graph(nodes: int = 30, edges: int = 150) -> SignedGraph:
    generator = np.random.default_rng(0)
    key = generator.choice(nodes * nodes, 2 * edges, replace=False)
    source, target = key // nodes, key % nodes
    kept = np.flatnonzero(source != target)[:edges]
    return SignedGraph.of(source[kept], target[kept], generator.choice([-1, 1, 1], edges), nodes)


def test_an_edge_is_judged_without_the_signs_of_its_fold() -> None:
    graph = some_graph()
    fitted = SMALL.fit(graph, 0, None, silent)
    fold = fitted.tensors()["fold"]
    chosen = fold == 0
    part = graph.take(chosen)
    without = SMALL.restore(graph.take(~chosen), fitted.tensors() | {"fold": fold[~chosen]})
    # The share of positive edges, the one thing that all edges tell together, differs a little.
    assert np.allclose(fitted.log_odds(part.source, part.target), without.log_odds(part.source, part.target), atol=0.05)


def test_a_pair_that_is_no_edge_hears_all_edges() -> None:
    graph = some_graph()
    fitted = SMALL.fit(graph, 0, None, silent)
    known = set(graph.key.tolist())
    pairs = np.array([(i, j) for i in range(30) for j in range(30) if i != j and i * 30 + j not in known], np.int32)
    more = graph.joined(pairs[:1, 0], pairs[:1, 1], np.array([-1]))
    other = SMALL.restore(more, fitted.tensors() | {"fold": np.append(fitted.tensors()["fold"], np.uint8(0))})
    nearby = (pairs[1:, 0] == pairs[0, 0]) | (pairs[1:, 1] == pairs[0, 1])
    source, target = pairs[1:][nearby].T
    assert (fitted.log_odds(source, target) != other.log_odds(source, target)).any()


def test_means_over_neighbours_are_of_both_signs_and_both_ways() -> None:
    graph = SignedGraph.of(np.array([0, 1, 2]), np.array([2, 2, 3]), np.array([1, 1, -1]))
    view = _View.of(graph, np.ones(3, bool), CPU)
    x = torch.tensor([[1.0], [3.0], [5.0], [7.0]])
    trusted_by, trusts, distrusted_by, distrusts = (messages(x) * share for messages, share in view.relations)
    assert trusted_by[:, 0].tolist() == [0, 0, 2, 0]
    assert trusts[:, 0].tolist() == [5, 5, 0, 0]
    assert distrusted_by[:, 0].tolist() == [0, 0, 0, 5]
    assert distrusts[:, 0].tolist() == [0, 0, 7, 0]


def test_nothing_is_learnt_of_a_single_node() -> None:
    shapes = [tuple(value.shape) for value in _Network(SMALL).state_dict().values()]
    assert max(max(shape) for shape in shapes) == 4 * SMALL.dim


def test_wrong_sizes_are_told() -> None:
    with pytest.raises(SettingError, match="2 to 255 folds"):
        MaskedGnn(folds=1)
