"""Never a test edge in training; what each split promises; what cannot be split says so."""

from dataclasses import replace

import numpy as np
import pytest

from thrifty import data
from thrifty.errors import DataError, SettingError
from thrifty.graph.known import load
from thrifty.graph.signed import SignedGraph
from thrifty.graph.split import Split, places_of, slices, splits
from thrifty.graph.synthetic import SyntheticGraph

GRAPH = SyntheticGraph(num_nodes=300, num_edges=3000).make(0)


@pytest.mark.parametrize("how", ["random", "temporal", "cold"])
def test_no_edge_is_in_both_parts_and_about_a_fifth_is_tested(how: str) -> None:
    for split in splits(GRAPH, how, num=3, seed=4):
        assert not (split.train & split.test).any()
        assert (split.train | split.test).all()
        assert 0.15 < split.test.mean() < 0.25


def test_a_seed_gives_one_split() -> None:
    first, second = splits(GRAPH, "random", num=2, seed=7)
    assert (splits(GRAPH, "random", num=1, seed=8)[0].test == second.test).all()
    assert (first.test != second.test).any()


def test_random_splits_keep_the_share_of_signs() -> None:
    (split,) = splits(GRAPH, "random", num=1)
    assert GRAPH.take(split.test).positive_share == pytest.approx(GRAPH.positive_share, abs=0.002)


def test_every_tested_edge_of_a_cold_split_touches_an_unseen_node() -> None:
    for split in splits(GRAPH, "cold", num=3):
        train, test = GRAPH.take(split.train), GRAPH.take(split.test)
        seen = np.union1d(train.source, train.target)
        assert (~np.isin(test.source, seen) | ~np.isin(test.target, seen)).all()
        assert slices(GRAPH, split)["degree 0"].all()
        assert "never seen in training" in split.note


def test_the_past_is_learnt_from_and_the_future_tested() -> None:
    assert GRAPH.time is not None
    (split,) = splits(GRAPH, "temporal")
    assert GRAPH.time[split.train].max() < GRAPH.time[split.test].min()


def test_edges_of_one_time_are_never_parted() -> None:
    assert GRAPH.time is not None
    tied = replace(GRAPH, time=np.floor(GRAPH.time / 400))
    assert tied.time is not None
    (split,) = splits(tied, "temporal")
    assert not set(tied.time[split.train]) & set(tied.time[split.test])
    unknown = replace(GRAPH, time=np.where(np.arange(GRAPH.num_edges) < 10, np.nan, GRAPH.time))
    (split,) = splits(unknown, "temporal")
    assert not (split.train | split.test)[:10].any()
    assert "10 edges without a time" in split.note


def test_official_splits_have_the_published_sizes() -> None:
    if not (data.is_here("bitcoin-alpha") and data.is_here("sga-splits")):
        pytest.skip("bitcoin-alpha or sga-splits is not on this machine")
    graph = load("bitcoin-alpha").graph
    found = splits(graph, "sga", origin="bitcoin-alpha")
    assert [int(split.test.sum()) for split in found] == [4837] * 5
    in_none = ~np.any([split.test for split in found], axis=0)
    assert in_none.sum() == 7967
    (third,) = splits(graph, "sga:3", origin="bitcoin-alpha")
    assert (third.test == found[2].test).all()
    with pytest.raises(DataError, match="are not in the graph; read the graph as it was published"):
        splits(graph.take(np.arange(20_000)), "sga", origin="bitcoin-alpha")


def test_slices_part_the_tested_edges() -> None:
    (split,) = splits(GRAPH, "random", num=1)
    parts = slices(GRAPH, split)
    assert all(len(part) == split.test.sum() for part in parts.values())
    assert (parts["reverse in training"] ^ parts["no reverse in training"]).all()
    degrees = [part for name, part in parts.items() if name.startswith("degree")]
    assert (np.sum(degrees, axis=0) == 1).all()
    train = {(int(s), int(t)) for s, t in zip(GRAPH.source[split.train], GRAPH.target[split.train], strict=True)}
    test = zip(GRAPH.source[split.test], GRAPH.target[split.test], strict=True)
    assert parts["reverse in training"].tolist() == [(int(t), int(s)) in train for s, t in test]


def test_edges_are_found_by_their_key() -> None:
    assert places_of(GRAPH, GRAPH.key[::-1]).tolist() == list(range(GRAPH.num_edges))[::-1]
    assert places_of(GRAPH, np.array([-5])).tolist() == [-1]


def test_what_cannot_be_split_says_so() -> None:
    positive = SignedGraph.of(np.arange(10), np.arange(1, 11), np.ones(10))
    with pytest.raises(SettingError, match="no split 'sga:6'; use one of random"):
        splits(GRAPH, "sga:6")
    with pytest.raises(SettingError, match="SGA's splits are of bitcoin-alpha"):
        splits(GRAPH, "sga")
    with pytest.raises(SettingError, match="ask for one or more"):
        splits(GRAPH, "random", num=0)
    with pytest.raises(DataError, match="the graph has none"):
        splits(replace(GRAPH, time=None), "temporal")
    with pytest.raises(DataError, match="at least two times; found 1"):
        splits(replace(GRAPH, time=np.ones(GRAPH.num_edges)), "temporal")
    with pytest.raises(DataError, match="all 10 edges are positive"):
        splits(positive, "random")
    with pytest.raises(DataError, match="both signs are needed"):
        splits(replace(positive, sign=np.where(np.arange(10) < 9, 1, -1).astype(np.int8)), "random")
    with pytest.raises(DataError, match="in both parts"):
        Split("x", np.array([True]), np.array([True]), "")
