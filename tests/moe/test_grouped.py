"""Grouped products equal one product for each expert."""

import torch
from torch.nn.functional import linear, silu

from thrifty.moe.grouped import run_grouped, sorted_by_expert


def test_offsets_say_where_each_expert_ends() -> None:
    order, offsets = sorted_by_expert(torch.tensor([3, 0, 3, 1, 0]), 5)
    assert order.tolist() == [1, 4, 3, 0, 2]
    assert offsets.tolist() == [2, 3, 3, 5, 5]


def test_each_token_goes_through_its_expert() -> None:
    x, choice = torch.randn(40, 32), torch.randint(0, 4, (40,))
    gate_up, down = torch.randn(4, 64, 32), torch.randn(4, 32, 32)
    found = run_grouped(x, choice, gate_up, down, silu)
    for row, expert, got in zip(x, choice, found, strict=True):
        gate, up = linear(row, gate_up[expert]).chunk(2)
        assert torch.allclose(got, linear(silu(gate) * up, down[expert]), rtol=1e-3, atol=1e-3)
