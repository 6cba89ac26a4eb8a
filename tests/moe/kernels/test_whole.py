"""A few tokens through matrices of their experts equal PyTorch, on a GPU and with `TRITON_INTERPRET=1` on a CPU."""

import importlib

import pytest
import torch
from torch.nn.functional import gelu, silu

from thrifty.moe.whole import run_offsets

RIGHT = {"silu": silu, "gelu": lambda x: gelu(x, approximate="tanh")}


def run(*arguments):
    return importlib.import_module("thrifty.moe.kernels.whole").run_vectors(*arguments)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_each_token_goes_through_its_expert(kernels, tokens, activation) -> None:
    x = torch.randn(tokens, 48, device=kernels.device)
    gate_up, down = (torch.randn(shape, device=kernels.device) / 6 for shape in ((5, 60, 48), (5, 48, 30)))
    choice = torch.randint(0, 5, (tokens,), device=kernels.device)
    found = run(x, choice, gate_up, down, activation, 7)
    for row, expert, got in zip(x.double(), choice, found, strict=True):
        gate, up = (gate_up[expert].double() @ row).chunk(2)
        assert kernels.error(got, down[expert].double() @ (RIGHT[activation](gate) * up)) < 1e-6


def test_half_precision_rounds_once(kernels) -> None:
    x = torch.randn(2, 32, device=kernels.device).half()
    gate_up, down = (torch.randn(shape, device=kernels.device).half() for shape in ((2, 40, 32), (2, 32, 20)))
    choice = torch.tensor([1, 0], device=kernels.device, dtype=torch.int32)
    found = run(x, choice, gate_up, down, "silu")
    for row, expert, got in zip(x.double(), choice, found, strict=True):
        gate, up = (gate_up[expert].double() @ row).chunk(2)
        assert kernels.error(got, down[expert].double() @ (silu(gate) * up)) < 5e-4


def test_other_experts_are_not_read(kernels) -> None:
    x = torch.randn(1, 32, device=kernels.device)
    gate_up, down = (torch.randn(shape, device=kernels.device) for shape in ((3, 40, 32), (3, 32, 20)))
    choice = torch.tensor([1], device=kernels.device)
    wanted = run(x, choice, gate_up, down, "silu")
    for weight in (gate_up, down):
        weight[[0, 2]] = float("nan")
    assert torch.equal(run(x, choice, gate_up, down, "silu"), wanted)


def test_grouped_products_between_kernels_equal_vectors(kernels) -> None:
    x = torch.randn(9, 32, device=kernels.device)
    gate_up, down = (torch.randn(shape, device=kernels.device) / 6 for shape in ((3, 64, 32), (3, 32, 32)))
    choice = torch.tensor([1, 2, 1, 1, 2, 1, 2, 2, 1], device=kernels.device, dtype=torch.int32)
    found = run_offsets(x, choice, gate_up, down, "silu")
    assert torch.allclose(found, run(x, choice, gate_up, down, "silu"), rtol=1e-2, atol=1e-2)
