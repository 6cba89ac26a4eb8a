"""Activations in Triton equal PyTorch's."""

import importlib

import pytest
import torch
from torch.nn.functional import gelu, silu


@pytest.mark.parametrize("name", ["silu", "gelu"])
@pytest.mark.parametrize("tokens", [0, 1, 33])
def test_gate_and_up_side_by_side(kernels, name, tokens) -> None:
    both = torch.randn(tokens, 2 * 70, device=kernels.device)
    gate, up = both.chunk(2, -1)
    wanted = (silu(gate) if name == "silu" else gelu(gate, approximate="tanh")) * up
    found = importlib.import_module("thrifty.moe.kernels.act").gated(both, name)
    assert torch.allclose(found, wanted, atol=1e-5)
