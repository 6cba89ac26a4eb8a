"""Candidates: the bound finds what looking at every pair finds."""

import numpy as np
import pytest

from thrifty.graph.candidates import all_pairs, class_probabilities, near_pairs
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.signed import SignedGraph
from thrifty.graph.terms import Terms


def every_pair(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    source, target = np.triu_indices(num_nodes, 1)
    return source.astype(np.int32), target.astype(np.int32)


def some_terms(num_nodes: int) -> Terms:
    chance = np.random.default_rng(0)
    a, b = (chance.standard_normal((num_nodes, 3)).astype(np.float32) * 3 for _ in range(2))
    return Terms(a, b, 0.0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("least", "most"), [(0.9, 10_000), (0.5, 100), (0.99999, 50), (1.5, 5)])
def test_the_best_of_all_pairs_are_found(sign: int, least: float, most: int) -> None:
    terms = some_terms(60)
    source, target = every_pair(60)
    probability = class_probabilities(terms, source, target)[0 if sign > 0 else 1]
    order = np.argsort(-probability)[:most]
    order = order[probability[order] >= least]
    found = all_pairs(terms.class_terms(), sign, least, most)
    assert set(zip(found.source, found.target, strict=True)) == set(zip(source[order], target[order], strict=True))
    assert np.allclose(found.probability, probability[order])
    assert (found.sign == sign).all()


def test_very_many_equal_pairs_take_bounded_memory() -> None:
    flat = np.zeros((500, 3), dtype=np.float32)
    found = all_pairs((flat, flat), 1, 0.1, 20)
    assert len(found.source) == 20
    assert np.allclose(found.probability, 1 / 3)


def test_near_pairs_are_two_steps_apart(graph: SignedGraph) -> None:
    connected = np.zeros((graph.num_nodes, graph.num_nodes), dtype=int)
    connected[graph.source, graph.target] = connected[graph.target, graph.source] = 1
    expected = np.argwhere(np.triu((connected @ connected > 0) & (connected == 0), 1))
    source, target = near_pairs(Neighbours.of(graph), 10_000, seed=0)
    assert sorted(zip(source, target, strict=True)) == sorted(map(tuple, expected))


def test_a_part_of_the_near_pairs_is_random_and_repeats(planted: SignedGraph) -> None:
    neighbours = Neighbours.of(planted)
    whole = near_pairs(neighbours, 10**6, 0)[0]
    one, again, other = (near_pairs(neighbours, len(whole) // 4, seed) for seed in (0, 0, 1))
    assert len(one[0]) == pytest.approx(len(whole) / 4, rel=0.1)
    assert (one[0] == again[0]).all()
    assert set(zip(*one, strict=True)) != set(zip(*other, strict=True))


def test_a_scorer_without_a_third_class_has_two(planted: SignedGraph) -> None:
    class Sure:
        def log_odds(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
            return np.full(len(source), 2.0)

        def left_out(self, graph: SignedGraph) -> None:
            return None

        def tensors(self) -> dict[str, np.ndarray]:
            return {}

    positive, negative = class_probabilities(Sure(), planted.source, planted.target)
    assert np.allclose(positive + negative, 1)
    assert positive[0] == pytest.approx(1 / (1 + np.exp(-2)))
