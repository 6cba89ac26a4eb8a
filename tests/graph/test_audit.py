"""Audits: what was turned around comes out on top, with reasons that are true and do not lean on the edge itself."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from thrifty.graph.audit import Audit, audit
from thrifty.graph.model import SignModel
from thrifty.graph.scorer import Tensors
from thrifty.graph.scorers.triads import Triads
from thrifty.graph.signed import SignedGraph


@dataclass(frozen=True)
class Certain:
    """A fitted scorer with the same log-odds for every pair."""

    odds: float

    def log_odds(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        return np.full(len(source), self.odds)

    def left_out(self, graph: SignedGraph) -> None:
        return None

    def tensors(self) -> Tensors:
        return {}


def certain(graph: SignedGraph, odds: float = 1.0) -> SignModel:
    return SignModel("triads", Triads(), graph, Certain(odds))


def edges_of(*edges: tuple[int, int, int], num_nodes: int | None = None) -> SignedGraph:
    source, target, sign = (np.array(column) for column in zip(*edges, strict=True))
    return SignedGraph.of(source, target, sign, num_nodes)


def reason(sign: int, degrees: tuple[int, ...], reverse: int = 0, balanced: float = 0, unbalanced: float = 0) -> str:
    """The reason of one edge of which these facts are known."""
    facts = np.array([degrees], dtype=np.int64)
    counts = (np.array([float(balanced)]), np.array([float(unbalanced)]))
    return Audit(
        edges_of((0, 1, sign)), np.array([0]), np.array([0.1]), facts, np.array([reverse], dtype=np.int8), *counts
    ).reason(0)


def test_edges_that_were_turned_around_come_out_on_top(planted: SignedGraph) -> None:
    group = np.random.default_rng(0).integers(0, 3, planted.num_nodes)
    true = np.where(group[planted.source] == group[planted.target], 1, -1)
    turned = np.random.default_rng(1).choice(planted.num_edges, 20, replace=False)
    sign = true.copy()
    sign[turned] *= -1
    graph = SignedGraph.of(planted.source, planted.target, sign, planted.num_nodes)
    found = audit(SignModel.fit(graph, Triads(reach=2)), graph)
    assert np.isin(turned, found.place[:40]).sum() >= 14  # of 20, among one edge in a hundred
    assert np.isin(turned, found.place[:800]).all()  # few triangles tell of the others
    assert np.isin(found.place[:5], turned).all()
    assert (np.diff(found.belief) >= 0).all()
    assert found.belief[0] < 0.05
    assert (found.edges.key == graph.key[found.place]).all()
    assert "triangles are unbalanced" in found.reason(0)


def test_a_belief_is_that_in_the_sign_of_the_edge() -> None:
    graph = edges_of((0, 1, 1), (1, 2, -1))
    found = audit(certain(graph, np.log(3)), graph)
    assert found.edges.sign.tolist() == [-1, 1]
    assert found.belief == pytest.approx([0.25, 0.75])


def test_facts_are_those_of_the_graph_without_the_edge(graph: SignedGraph) -> None:
    found = audit(certain(graph), graph)
    signs = {(s, t): int(sign) for s, t, sign in zip(graph.source, graph.target, graph.sign, strict=True)}
    for row in range(graph.num_edges):
        u, v, sign = (int(column[row]) for column in (found.edges.source, found.edges.target, found.edges.sign))
        others = {pair: one for pair, one in signs.items() if pair != (u, v)}
        ends = [(0, u), (1, v), (0, v), (1, u)]  # source out, target in, target out, source in
        counts = [
            sum(pair[side] == node and one == wanted for pair, one in others.items())
            for side, node in ends
            for wanted in (1, -1)
        ]
        assert found.degrees[row].tolist() == counts
        assert found.reverse[row] == others.get((v, u), 0)
        triangles = [
            one * two * sign
            for w in range(graph.num_nodes)
            for one in (others.get((u, w)), others.get((w, u)))
            for two in (others.get((w, v)), others.get((v, w)))
            if one and two
        ]
        assert (found.balanced[row], found.unbalanced[row]) == (triangles.count(1), triangles.count(-1))


def test_an_edge_that_the_model_does_not_have_takes_nothing_from_the_degrees() -> None:
    known = edges_of((0, 1, 1), (2, 3, -1), num_nodes=4)
    found = audit(certain(known), edges_of((0, 3, 1), num_nodes=4))
    assert found.degrees[0].tolist() == [1, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ((1, (1, 0, 1, 0, 0, 1, 0, 0), -1), "the answer of the target is negative"),
        ((-1, (0, 1, 0, 1, 1, 0, 0, 0), 1), "the answer of the target is positive"),
        ((1, (1, 0, 1, 0, 1, 0, 1, 0), 1, 2, 5), "5 of 7 triangles are unbalanced"),
        ((1, (1, 0, 1, 0, 1, 0, 1, 0), 0, 0.5, 1.5), "1.5 of 2 triangles are unbalanced"),
        ((1, (1, 0, 1, 2, 0, 0, 0, 0)), "2 of 3 others' edges to the target are negative"),
        ((-1, (0, 1, 2, 1, 0, 0, 0, 0)), "2 of 3 others' edges to the target are positive"),
        ((1, (1, 3, 1, 0, 0, 0, 0, 0)), "3 of 4 other edges of the source are negative"),
        ((-1, (3, 1, 0, 1, 0, 0, 0, 0)), "3 of 4 other edges of the source are positive"),
        (
            (1, (0, 1, 0, 2, 0, 3, 0, 0), -1, 0, 1),
            "the answer of the target is negative; 1 of 1 triangles are unbalanced; "
            "2 of 2 others' edges to the target are negative; 1 of 1 other edges of the source are negative",
        ),
    ],
)  # fmt: skip
def test_a_reason_is_what_speaks_against_the_sign_and_no_more(facts: tuple, told: str) -> None:
    assert reason(*facts) == told


def test_what_is_even_or_speaks_for_the_sign_is_no_reason() -> None:
    assert reason(1, (2, 2, 3, 3, 1, 0, 0, 0), 1, 4, 4) == "longer paths and the mix of degrees"
    assert reason(-1, (0, 9, 0, 9, 0, 1, 0, 0), -1, 4, 0) == "longer paths and the mix of degrees"


def test_an_edge_of_which_nothing_is_known_says_so_and_no_other_does() -> None:
    # The ends of 3 -> 4 have edges too, but none out of the source or into the target, and their triangle is balanced.
    graph = edges_of((0, 1, -1), (3, 4, 1), (2, 3, 1), (4, 2, 1))
    found = audit(certain(graph), graph)
    told = {(int(s), int(t)): found.reason(row) for row, (s, t) in enumerate(zip(*ends(found), strict=True))}
    assert told[0, 1] == "nothing else is known"
    assert told[3, 4] == "longer paths and the mix of degrees"
    assert (found.degrees[0].tolist(), found.balanced[0], found.unbalanced[0]) == ([0] * 8, 0, 0)


def ends(found: Audit) -> tuple[np.ndarray, np.ndarray]:
    return found.edges.source, found.edges.target


def test_columns_hold_the_ids_of_the_input_in_the_order_of_suspicion() -> None:
    graph = edges_of((0, 1, 1), (1, 0, -1), (1, 2, 1))
    graph = replace(graph, names=np.array(["née", "bob", "zoë"], dtype=object))
    table = audit(certain(graph, np.log(4)), graph).columns()
    assert {len(values) for values in table.values()} == {3}
    assert table["source"].tolist() == ["bob", "née", "bob"]
    assert table["target"].tolist() == ["née", "bob", "zoë"]
    assert table["sign"].tolist() == [-1, 1, 1]
    assert table["probability_of_sign"] == pytest.approx([0.2, 0.8, 0.8])
    assert table["reverse_sign"].tolist() == [1, -1, 0]
    assert table["source_out_positive"].tolist() == [1, 0, 0]
    assert table["source_out_negative"].tolist() == [0, 0, 1]
    assert table["reason"][0].startswith("the answer of the target is positive")


@pytest.mark.parametrize(("most", "rows"), [(1, 1), (3, 3), (99, 3), (None, 3)])
def test_only_the_most_suspicious_are_shown(most: int | None, rows: int) -> None:
    graph = edges_of((0, 1, 1), (1, 0, -1), (1, 2, 1))
    table = audit(certain(graph), graph).columns(most)
    assert {len(values) for values in table.values()} == {rows}
    assert table["sign"][0] == -1
