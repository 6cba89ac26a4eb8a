"""SGCN: its layers are PyG's, and its prior is what the setting says."""

import numpy as np
import pytest
import torch
from torch_geometric.nn import SignedConv, SignedGCN

from thrifty.errors import SettingError
from thrifty.graph.messages import mean_of
from thrifty.graph.scorers.sgcn import Sgcn, _Network
from thrifty.graph.signed import SignedGraph
from thrifty.graph.terms import Terms, log_prior
from thrifty.progress import silent

CPU = torch.device("cpu")


def some_graph(nodes: int = 30, edges: int = 150) -> SignedGraph:
    generator = np.random.default_rng(0)
    key = generator.choice(nodes * nodes, 2 * edges, replace=False)
    source, target = key // nodes, key % nodes
    kept = np.flatnonzero(source != target)[:edges]
    return SignedGraph.of(source[kept], target[kept], generator.choice([-1, 1, 1], edges), nodes)


def test_network_is_that_of_pyg() -> None:
    graph = some_graph()
    x = torch.randn(30, 8)
    index = torch.from_numpy(np.stack([graph.source, graph.target]).astype(np.int64))
    positive, negative = index[:, graph.sign > 0], index[:, graph.sign < 0]
    means = [mean_of(*edges.numpy().astype(np.int32), 30, CPU) for edges in (positive, negative)]
    ours, peer = _Network(x, *means, num_layers=3), SignedGCN(8, 8, 3)
    ours.first.load_state_dict(peer.conv1.state_dict())
    ours.others.load_state_dict(peer.convs.state_dict())
    assert isinstance(ours.first, SignedConv)
    assert torch.allclose(ours(), peer(x, positive, negative), atol=1e-5)


def test_prior_shifts_the_log_odds() -> None:
    graph = some_graph()
    odds = {}
    for prior in ("corrected", "uniform"):
        fitted = Sgcn(prior=prior, dim=8, epochs=5).fit(graph, 0, None, silent)
        assert isinstance(fitted, Terms)
        odds[prior] = fitted.log_odds(graph.source, graph.target)
    assert np.allclose(odds["corrected"] - odds["uniform"], log_prior(graph))


def test_wrong_settings_are_told() -> None:
    with pytest.raises(SettingError, match="even dim"):
        Sgcn(dim=7)
