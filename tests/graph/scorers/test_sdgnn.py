"""SDGNN: its three losses by hand, and the relations in both directions."""

import numpy as np
import pytest
import torch

from thrifty.errors import SettingError
from thrifty.graph.scorers.sdgnn import FittedSdgnn, Sdgnn, _loss, _Network
from thrifty.graph.signed import SignedGraph
from thrifty.graph.signed_loss import LossEdges

GRAPH = SignedGraph.of(np.array([0, 1, 0, 3]), np.array([1, 2, 2, 0]), np.array([1, -1, -1, 1]))


def test_losses_are_those_of_the_paper() -> None:
    settings = Sdgnn(dim=4, direction=2.0, triangle=3.0)
    network = _Network(settings, GRAPH)
    z = network()
    status = torch.sigmoid(network.status(z))[:, 0]
    probability = [torch.sigmoid(z[i] @ z[j]) for i, j in zip(GRAPH.source, GRAPH.target, strict=True)]
    lost = [-torch.log(p if s > 0 else 1 - p) for p, s in zip(probability, GRAPH.sign, strict=True)]
    direction = []
    for i, j, sign in zip(GRAPH.source, GRAPH.target, GRAPH.sign, strict=True):
        gap = status[i] - status[j]
        wanted = torch.clamp(gap, max=-0.5) if sign > 0 else torch.clamp(gap, min=0.5)
        direction.append((wanted - gap) ** 2)
    triangle = sum(lost[:3]) / 3  # the first three edges are one balanced triangle
    wanted = sum(lost) / 4 + 2 * sum(direction) / 4 + 3 * triangle
    got = _loss(settings, network, LossEdges(GRAPH, torch.device("cpu")), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert torch.allclose(got, wanted)


def test_relations_go_both_ways() -> None:
    network = _Network(Sdgnn(dim=4), GRAPH)
    assert network.get_buffer("relation_0").tolist() == [[0, 3], [1, 0]]
    assert network.get_buffer("relation_1").tolist() == [[1, 0], [0, 3]]
    assert network.get_buffer("relation_2").tolist() == [[1, 0], [2, 2]]


def test_log_odds_add_biases_and_the_product() -> None:
    a, b = np.array([1, 2], np.float32), np.array([10, 20], np.float32)
    left, right = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6], [7, 8]], np.float32)
    fitted = FittedSdgnn(a, b, left, right)
    assert fitted.log_odds(np.array([0], np.int32), np.array([1], np.int32)).tolist() == [1 + 20 + 7 + 16]


def test_wrong_sizes_are_told() -> None:
    with pytest.raises(SettingError, match="dim=0"):
        Sdgnn(dim=0)
