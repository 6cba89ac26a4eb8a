"""The made-up graph: the same each time, of the size that was asked, and neither trivial nor hopeless."""

import numpy as np
import pytest

from thrifty.errors import SettingError
from thrifty.graph.split import random_split
from thrifty.graph.synthetic import SyntheticGraph

GRAPH = SyntheticGraph().make(0)


def test_a_seed_gives_one_graph() -> None:
    again = SyntheticGraph().make(0)
    assert again.key.tolist() == GRAPH.key.tolist()
    assert again.sign.tolist() == GRAPH.sign.tolist()
    assert SyntheticGraph().make(1).key.tolist() != GRAPH.key.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_the_graph_looks_like_a_trust_network(seed: int) -> None:
    graph = SyntheticGraph().make(seed)
    graph.check()
    assert 15_000 <= graph.num_edges <= 20_000
    assert 0.65 < graph.positive_share < 0.9
    reverse = np.isin(graph.target.astype(np.int64) * graph.num_nodes + graph.source, graph.key)
    assert 0.3 < reverse.mean() < 0.6
    in_degree = np.bincount(graph.target, minlength=graph.num_nodes)
    assert in_degree.max() > 10 * np.median(in_degree)
    assert graph.time is not None
    assert (np.diff(graph.time) >= 0).all()


def test_signs_can_be_learnt_and_not_wholly() -> None:
    split = random_split(GRAPH, 0)
    train, test = GRAPH.take(split.train), GRAPH.take(split.test)
    # How positive a target's other edges are tells a good part of the sign.
    sums = np.bincount(train.target, weights=train.sign, minlength=GRAPH.num_nodes)
    score = (sums / np.maximum(np.bincount(train.target, minlength=GRAPH.num_nodes), 1))[test.target]
    order = np.argsort(np.argsort(score, kind="stable"), kind="stable")
    is_positive = test.sign > 0
    num = is_positive.sum()
    auc = (order[is_positive].sum() - num * (num - 1) / 2) / (num * (~is_positive).sum())
    assert 0.6 < auc < 0.9


def test_other_sizes_can_be_asked_for() -> None:
    small = SyntheticGraph(num_nodes=60, num_edges=300).make(0)
    assert 200 < small.num_edges <= 300
    for settings in ({"num_nodes": 3}, {"num_edges": 10**7}, {"exponent": 1.5}):
        with pytest.raises(SettingError):
            SyntheticGraph(**settings)
