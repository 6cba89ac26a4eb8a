"""The cost of a plan for a graph."""

import torch

from thrifty.graph import cost


def test_edges_are_those_that_stay_and_those_that_come() -> None:
    keep = {"edges": torch.tensor([1.0, 0.0, 1.0]), "proposed": torch.tensor([1.0])}
    assert cost.num_edges(keep) == 3
