"""Small signed graphs for the tests."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from thrifty.graph.signed import SignedGraph
from thrifty.graph.writing import edge_columns, write_table


def random_graph(num_nodes: int, num_edges: int, seed: int = 0, positive: float = 0.7) -> SignedGraph:
    """Distinct directed edges between random nodes, some of them in both directions."""
    chance = np.random.default_rng(seed)
    keys = chance.choice(num_nodes * num_nodes, size=4 * num_edges, replace=False)
    source, target = keys // num_nodes, keys % num_nodes
    chosen = np.flatnonzero(source != target)[: num_edges * 3 // 4]
    source, target = source[chosen], target[chosen]
    back = chance.random(len(source)) < 1 / 3
    source, target = np.r_[source, target[back]], np.r_[target, source[back]]
    chosen = np.unique(source * num_nodes + target, return_index=True)[1]
    sign = np.where(chance.random(len(chosen)) < positive, 1, -1)
    return SignedGraph.of(source[chosen], target[chosen], sign, num_nodes)


@pytest.fixture
def graph() -> SignedGraph:
    """40 nodes and about 200 edges, dense enough for triangles of all kinds."""
    return random_graph(40, 200)


@pytest.fixture
def planted() -> SignedGraph:
    """300 nodes in three groups: trust within a group, distrust between them, one sign in ten the other way."""
    chance = np.random.default_rng(0)
    graph = random_graph(300, 4000, seed=1)
    group = chance.integers(0, 3, graph.num_nodes)
    sign = np.where(group[graph.source] == group[graph.target], 1, -1)
    flipped = chance.random(graph.num_edges) < 0.1
    return SignedGraph.of(graph.source, graph.target, np.where(flipped, -sign, sign), graph.num_nodes)


@pytest.fixture
def trust(planted: SignedGraph, tmp_path: Path) -> Path:
    """The planted graph as a CSV file with the columns source, target and sign."""
    write_table(tmp_path / "trust.csv", edge_columns(planted))
    return tmp_path / "trust.csv"


@pytest.fixture
def people(planted: SignedGraph, tmp_path: Path) -> Path:
    """The planted graph with names in place of numbers."""
    names = np.array([f"née {node}" for node in range(planted.num_nodes)], dtype=object)
    write_table(tmp_path / "people.csv", edge_columns(replace(planted, names=names)))
    return tmp_path / "people.csv"


@pytest.fixture
def thrifty(command_line):
    """Run `thrifty graph ...`; return status, stdout with single spaces between words, and stderr."""
    return functools.partial(command_line, "graph")
