"""Features of nodes: the true singular vectors, whatever the seed; the same numbers for the same seed."""

import numpy as np

from thrifty.graph.signed import SignedGraph
from thrifty.graph.spectral import leading, node_features, symmetrised


def some_graph(nodes: int = 60, edges: int = 400) -> SignedGraph:
    generator = np.random.default_rng(0)
    key = generator.choice(nodes * nodes, 2 * edges, replace=False)
    source, target = key // nodes, key % nodes
    kept = np.flatnonzero(source != target)[:edges]
    return SignedGraph.of(source[kept], target[kept], generator.choice([-1, 1, 1], edges), nodes)


def test_vectors_are_the_singular_vectors() -> None:
    for nodes in (60, 500):  # dense, sparse
        matrix = symmetrised(some_graph(nodes, 8 * nodes))
        vectors, values = leading(matrix, 8, seed=1)
        assert np.allclose(np.abs(values), np.linalg.svd(matrix.toarray(), compute_uv=False)[:8], rtol=1e-3)
        assert np.allclose(vectors.T @ vectors, np.eye(8), atol=1e-4)
        assert np.allclose(matrix @ vectors, vectors * values, atol=0.02)


def test_signs_do_not_depend_on_the_seed() -> None:
    first, second = (leading(symmetrised(some_graph(500, 4000)), 3, seed)[0] for seed in (1, 2))
    assert np.allclose(first, second, atol=0.02)
    assert (first[np.abs(first).argmax(0), np.arange(3)] > 0).all()


def test_agreeing_pairs_count_twice_and_disagreeing_ones_not_at_all() -> None:
    graph = SignedGraph.of(np.array([0, 1, 2, 3, 4]), np.array([1, 0, 3, 2, 0]), np.array([1, 1, 1, -1, -1]))
    dense = symmetrised(graph).toarray()
    assert (dense == dense.T).all()
    assert (dense[0, 1], dense[2, 3], dense[0, 4]) == (2, 0, -1)


def test_a_graph_with_hardly_an_edge_has_features_too() -> None:
    for edges in (0, 1, 3):
        graph = some_graph(500, 4000).take(np.arange(edges))
        assert np.isfinite(node_features(graph, "spectral", 16, seed=0)).all()


def test_both_kinds_have_the_asked_width_even_with_fewer_nodes() -> None:
    graph = some_graph(nodes=10, edges=20)
    for kind in ("random", "spectral"):
        features = node_features(graph, kind, 16, seed=0)
        assert features.shape == (10, 16)
        assert (features == node_features(graph, kind, 16, seed=0)).all()
    random = node_features(graph, "random", 16, seed=0)
    assert (random >= 0).all()
    assert (random < 1).all()
