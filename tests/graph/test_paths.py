"""Paths of two and three edges, against walking them one by one."""

import itertools

import numpy as np
import pytest

from thrifty.graph import paths
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.signed import SignedGraph


def signs_of(graph: SignedGraph) -> np.ndarray:
    sign = np.zeros((graph.num_nodes, graph.num_nodes), dtype=int)
    sign[graph.source, graph.target] = graph.sign
    return sign


def hops(sign: np.ndarray, one: int, other: int) -> list[int]:
    """Which of the four kinds of edges are between two nodes."""
    kinds = {0: sign[one, other] > 0, 1: sign[one, other] < 0, 2: sign[other, one] > 0, 3: sign[other, one] < 0}
    return [kind for kind, there in kinds.items() if there]


def walk_two(sign: np.ndarray, u: int, v: int) -> np.ndarray:
    counts = np.zeros(paths.TWO)
    for w in range(len(sign)):
        for first, last in itertools.product(hops(sign, u, w), hops(sign, v, w)):
            counts[4 * first + last] += 1
    return counts


def walk_three(sign: np.ndarray, u: int, v: int, middle: np.ndarray, last: np.ndarray) -> np.ndarray:
    counts = np.zeros(paths.THREE)
    others = [node for node in range(len(sign)) if node not in (u, v)]
    for x, w in itertools.permutations(others, 2):
        for first, second, final in itertools.product(hops(sign, u, x), hops(sign, x, w), hops(sign, v, w)):
            kind = 4 * (first // 2) + 2 * (second // 2) + (first % 2 != second % 2)
            counts[4 * kind + final] += middle[x] * last[w]
    return counts


def pairs_of(graph: SignedGraph) -> tuple[np.ndarray, np.ndarray]:
    """Some edges, and some pairs without an edge; sources repeat and are not sorted."""
    chance = np.random.default_rng(1)
    source, target = chance.integers(0, graph.num_nodes, size=(2, 30), dtype=np.int32)
    keep = source != target
    return np.r_[graph.source[:30], source[keep]], np.r_[graph.target[:30], target[keep]]


def test_two_edges_are_those_found_by_walking(graph: SignedGraph) -> None:
    source, target = pairs_of(graph)
    counts = paths.two_edges(Neighbours.of(graph), source, target)
    walked = [walk_two(signs_of(graph), u, v) for u, v in zip(source, target, strict=True)]
    assert (counts == np.array(walked)).all()
    assert counts.sum() > 100


@pytest.mark.parametrize("max_degree", [5000, 9])
def test_three_edges_are_those_found_by_walking(graph: SignedGraph, max_degree: int) -> None:
    source, target = pairs_of(graph)
    neighbours = Neighbours.of(graph)
    counts = paths.three_edges(neighbours, source, target, max_degree)
    weight = 1 / np.log2(2 + neighbours.degree)
    middle = np.where(neighbours.degree <= max_degree, weight, 0)
    assert (neighbours.degree > 9).any()
    walked = [walk_three(signs_of(graph), u, v, middle, weight) for u, v in zip(source, target, strict=True)]
    assert np.allclose(counts, np.array(walked), atol=1e-4)


def test_an_edge_is_not_part_of_its_own_paths(graph: SignedGraph) -> None:
    neighbours = Neighbours.of(graph)
    for edge in range(20):
        sign = graph.sign.copy()
        sign[edge] *= -1
        other = Neighbours.of(SignedGraph.of(graph.source, graph.target, sign))
        u, v = graph.source[edge : edge + 1], graph.target[edge : edge + 1]
        for count in (paths.two_edges, paths.three_edges):
            assert np.allclose(count(neighbours, u, v), count(other, u, v), atol=1e-5)


def test_names_are_as_many_as_columns_and_differ() -> None:
    assert len(set(paths.two_edge_names())) == paths.TWO
    assert len(set(paths.three_edge_names())) == paths.THREE


def test_no_pairs_give_no_counts(graph: SignedGraph) -> None:
    none = np.zeros(0, dtype=np.int32)
    assert paths.two_edges(Neighbours.of(graph), none, none).shape == (0, paths.TWO)
