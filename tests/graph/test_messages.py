"""Messages: the mean over neighbours, and the gradient that autograd would give."""

import numpy as np
import torch

from thrifty.graph.messages import mean_of, weighted

CPU = torch.device("cpu")
SOURCE, TARGET = np.array([0, 1, 2, 0], np.int32), np.array([1, 2, 1, 3], np.int32)


def test_each_node_gets_the_mean_of_those_who_point_to_it() -> None:
    x = torch.arange(8.0).reshape(4, 2)
    got = mean_of(SOURCE, TARGET, 4, CPU)(x)
    assert torch.allclose(got, torch.stack([torch.zeros(2), (x[0] + x[2]) / 2, x[1], x[0]]))


def test_gradient_is_that_of_the_dense_product() -> None:
    weight = np.array([0.5, -1.0, 2.0, 3.0], np.float32)
    dense = torch.zeros(4, 4)
    dense[TARGET, SOURCE] = torch.from_numpy(weight)
    x, slope = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    (got,) = torch.autograd.grad(weighted(weight, SOURCE, TARGET, 4, CPU)(x), x, slope)
    (wanted,) = torch.autograd.grad(dense @ x, x, slope)
    assert torch.allclose(got, wanted)
