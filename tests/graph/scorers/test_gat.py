"""GAT: every node hears itself once, as in PyG."""

import numpy as np
import pytest
import torch
from torch_geometric.nn import GATConv

from thrifty.errors import SettingError
from thrifty.graph.scorers.gat import Gat, _Network, _with_loops
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
    network = _Network(x, _with_loops(graph, torch.device("cpu")), num_layers=2)
    wanted = x
    for layer in network.layers:
        peer = GATConv(8, 8)
        peer.load_state_dict(layer.state_dict())
        wanted = peer(wanted, index).relu()
    assert torch.allclose(network(), wanted, atol=1e-5)


def test_wrong_sizes_are_told() -> None:
    with pytest.raises(SettingError, match="dim=0"):
        Gat(dim=0)
