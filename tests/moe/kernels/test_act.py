"""Activations in Triton equal PyTorch's."""

import importlib

import pytest
import torch
from torch.nn.functional import gelu, silu


def gated(*arguments):
    return importlib.import_module("thrifty.moe.kernels.act").gated(*arguments)


def right(name, gate, up):
    if gate is None:
        return silu(up) if name == "silu" else gelu(up, approximate="tanh")
    return right(name, None, gate) * up


@pytest.mark.parametrize("name", ["silu", "gelu"])
@pytest.mark.parametrize("tokens", [0, 1, 33])
def test_gate_and_up_side_by_side_or_apart(kernels, name, tokens) -> None:
    gate, up = torch.randn(tokens, 2 * 70, device=kernels.device).chunk(2, -1)
    assert torch.allclose(gated(gate, up, name), right(name, gate, up), atol=1e-5)
    assert torch.allclose(gated(gate.contiguous(), up.contiguous(), name), right(name, gate, up), atol=1e-5)
    assert torch.allclose(gated(None, up, name), right(name, None, up), atol=1e-5)


def test_channels_of_other_experts_are_zero(kernels) -> None:
    gate, up = torch.randn(2, 9, 70, device=kernels.device)
    members = (torch.rand(3, 70, device=kernels.device) < 0.5).to(torch.uint8)
    choice = torch.randint(0, 3, (9,), device=kernels.device, dtype=torch.int32)
    up[members[choice] == 0] = float("inf")
    wanted = torch.where(members[choice] > 0, right("silu", gate, up), 0.0)
    assert torch.allclose(gated(gate, up, "silu", choice, members), wanted, atol=1e-5)
