"""GCN: its layers are PyG's, and signs are in the loss only."""

import numpy as np
import pytest
import torch

from thrifty.errors import SettingError
from thrifty.graph.scorers.gcn import Gcn, _Network, _normalised
from thrifty.graph.signed import SignedGraph


def some_graph(nodes: int = 30, edges: int = 150) -> SignedGraph:
    generator = np.random.default_rng(0)
    key = generator.choice(nodes * nodes, 2 * edges, replace=False)
    source, target = key // nodes, key % nodes
    kept = np.flatnonzero(source != target)[:edges]
    return SignedGraph.of(source[kept], target[kept], generator.choice([-1, 1, 1], edges), nodes)


def test_layers_are_those_of_pyg() -> None:
    graph, x = some_graph(), torch.randn(30, 8)
    index = torch.from_numpy(np.stack([graph.source, graph.target]).astype(np.int64))
    network = _Network(x, _normalised(graph, torch.device("cpu")), num_layers=2)
    wanted = x
    for layer in network.layers:
        wanted = layer(wanted, index).relu()
    assert torch.allclose(network(), wanted, atol=1e-5)


def test_wrong_sizes_are_told() -> None:
    with pytest.raises(SettingError, match="num_layers=0"):
        Gcn(num_layers=0)
