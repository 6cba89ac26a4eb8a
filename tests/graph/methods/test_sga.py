"""SGA: what is deleted, what is added, and that the published rule is there beside the strict one."""

import numpy as np
import pytest

from thrifty.errors import SettingError
from thrifty.graph.apply import apply
from thrifty.graph.balance import balance
from thrifty.graph.job import GraphJob
from thrifty.graph.methods.sga import PUBLISHED, Sga
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.signed import SignedGraph
from thrifty.graph.terms import Terms


def known_terms(graph: SignedGraph, seed: int = 0) -> Terms:
    """A scorer that likes some nodes and dislikes others, and finds edges likely."""
    chance = np.random.default_rng(seed)
    a, b = (chance.standard_normal((graph.num_nodes, 3)).astype(np.float32) * 2 for _ in range(2))
    return Terms(a, b, 0.0)


def probabilities(terms: Terms, graph: SignedGraph) -> np.ndarray:
    logits = terms.a[graph.source].astype(float) + terms.b[graph.target]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.where(graph.sign > 0, shares[:, 0], shares[:, 1])


def test_edges_below_the_threshold_of_their_sign_go(graph: SignedGraph) -> None:
    terms = known_terms(graph)
    method = Sga(delete_positive=0.2, delete_negative=0.4, add_positive=1.1, add_negative=1.1)
    new = apply(method.plan_with(terms, GraphJob.of(graph)), graph)
    stays = probabilities(terms, graph) >= np.where(graph.sign > 0, 0.2, 0.4)
    assert sorted(new.graph.key) == sorted(graph.key[stays])
    assert 0 < new.graph.num_edges < graph.num_edges


def test_added_pairs_get_both_directions_and_are_sure(graph: SignedGraph) -> None:
    method = Sga(delete_positive=0.0, delete_negative=0.0, add_positive=0.9, add_negative=0.9)
    new = apply(method.plan_with(known_terms(graph), GraphJob.of(graph)), graph)
    added = new.origin == 2
    assert added.sum() > 5
    assert (new.probability[added] >= 0.9).all()
    sign = dict(zip(new.graph.key.tolist(), new.graph.sign.tolist(), strict=True))
    for u, v in zip(new.all_edges.source[added], new.all_edges.target[added], strict=True):
        assert sign[int(u) * graph.num_nodes + int(v)] == sign[int(v) * graph.num_nodes + int(u)]


def test_published_counts_are_of_the_graph_as_it_was(graph: SignedGraph) -> None:
    job, terms = GraphJob.of(graph, keep="1000%"), known_terms(graph)
    loose = {"delete_positive": 0.0, "delete_negative": 0.0, "add_positive": 0.6, "add_negative": 0.6}
    static, strict = (apply(Sga(**loose, balance=rule).plan_with(terms, job), graph) for rule in ("static", "strict"))
    for new, most in ((static, None), (strict, 0)):
        added = new.all_edges.take(new.origin == 2)
        before = balance(Neighbours.of(graph), added.source, added.target, added.sign)[1]
        after = balance(Neighbours.of(new.graph), added.source, added.target, added.sign)[1]
        assert (before == 0).all()
        assert (after == 0).all() if most == 0 else (after > 0).any()
    assert static.graph.num_edges > strict.graph.num_edges


def test_a_preset_is_the_published_rule(graph: SignedGraph) -> None:
    one = Sga(preset="bitcoin-alpha")._resolved()
    assert (one.delete_positive, one.delete_negative, one.add_positive, one.add_negative) == PUBLISHED["bitcoin-alpha"]
    assert (one.candidates, one.balance) == ("all", "static")
    assert one._rounded(np.array([0.9951, 0.294])).tolist() == [1.0, 0.29]


def test_near_pairs_have_a_common_neighbour(graph: SignedGraph) -> None:
    method = Sga(candidates="near", add_positive=0.5, add_negative=0.5)
    new = apply(method.plan_with(known_terms(graph), GraphJob.of(graph)), graph)
    added = new.origin == 2
    assert added.any()
    assert (new.balanced[added] + new.unbalanced[added] > 0).all()


def test_what_leaves_nothing_or_cannot_be_searched_is_refused(graph: SignedGraph) -> None:
    with pytest.raises(SettingError, match="every edge would be deleted"):
        Sga(delete_positive=1.1, delete_negative=1.1).plan_with(known_terms(graph), GraphJob.of(graph))
    with pytest.raises(SettingError, match="use near"):
        Sga(scorer="triads").plan(GraphJob.of(graph))
