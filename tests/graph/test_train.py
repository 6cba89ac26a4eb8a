"""Training: the curriculum restricts what the loss sees, and a loss that is no number is told."""

import numpy as np
import pytest
import torch
from torch import nn

from thrifty.errors import DataError, SettingError
from thrifty.graph.signed import SignedGraph
from thrifty.graph.signed_loss import LossEdges
from thrifty.graph.train import Schedule, check_learnable, device_of, generator_of, seeded, train
from thrifty.progress import silent

CPU = torch.device("cpu")
GRAPH = SignedGraph.of(np.array([0, 1, 2, 3]), np.array([1, 2, 3, 0]), np.array([1, -1, 1, -1]))


class Half:
    """Releases the first two edges in the first half of the training."""

    def edges_at(self, progress: float) -> np.ndarray:
        return np.arange(2 if progress < 0.5 else 4)


def test_curriculum_decides_which_edges_count() -> None:
    edges, seen = LossEdges(GRAPH, CPU), []
    network = nn.Linear(1, 1)

    def loss() -> torch.Tensor:
        seen.append(int((edges.weight > 0).sum()))
        return network.weight.square().sum()

    train(network, [loss], edges, generator_of(0, CPU), Schedule(4, 0.1, 0.0), Half(), silent)
    assert seen == [2, 2, 4, 4]


def test_a_loss_that_is_no_number_is_told() -> None:
    network = nn.Linear(1, 1)
    with pytest.raises(DataError, match=r"loss is nan after 2 of 2 epochs; use a learning rate below 0\.1"):
        train(
            network,
            [lambda: network.weight.sum() * float("nan")],
            LossEdges(GRAPH, CPU),
            generator_of(0, CPU),
            Schedule(2, 0.1, 0.0),
            None,
            silent,
        )


def test_seeded_numbers_leave_the_others_alone() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    with seeded(5):
        first = torch.rand(1)
    assert torch.rand(1) == wanted
    with seeded(5):
        assert torch.rand(1) == first


def test_devices() -> None:
    assert device_of("cpu") == CPU
    if not torch.cuda.is_available():
        assert device_of("auto") == CPU
        with pytest.raises(SettingError, match="no CUDA GPU"):
            device_of("cuda")


def test_a_graph_without_edges_is_told() -> None:
    with pytest.raises(DataError, match="no edge"):
        check_learnable(GRAPH.take(np.zeros(4, bool)))
