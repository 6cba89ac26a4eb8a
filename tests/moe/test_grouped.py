"""Grouped products equal one product for each expert."""

import torch
from torch.nn.functional import linear, silu

from thrifty.moe.experts import PackedMlp, Shape, run_sorted
from thrifty.moe.grouped import Copies, run_grouped, sorted_by_expert
from thrifty.moe.packing import Packing


def test_offsets_say_where_each_expert_ends() -> None:
    order, offsets = sorted_by_expert(torch.tensor([3, 0, 3, 1, 0]), 5)
    assert order.tolist() == [1, 4, 3, 0, 2]
    assert offsets.tolist() == [2, 3, 3, 5, 5]


def test_each_token_goes_through_its_expert() -> None:
    x, choice = torch.randn(40, 32), torch.randint(0, 4, (40,))
    gate_up, down = torch.randn(4, 64, 32), torch.randn(4, 32, 32)

    def gated(both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, -1)
        return silu(gate) * up

    found = run_grouped(x, choice, gate_up, down, gated)
    for row, expert, got in zip(x, choice, found, strict=True):
        gate, up = linear(row, gate_up[expert]).chunk(2)
        assert torch.allclose(got, linear(silu(gate) * up, down[expert]), rtol=1e-3, atol=1e-3)


def test_copies_of_experts_of_unequal_widths_are_padded() -> None:
    members = Packing.of(torch.rand(3, 90) < torch.tensor([[0.2], [0.5], [0.9]])).members
    mlp = PackedMlp(Shape(3, members.shape[1], True, False, False, True), 32, silu)
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mlp.members.copy_(members)
    x, choice = torch.randn(20, 32), torch.randint(0, 3, (20,))
    copies = Copies.of(mlp)
    assert copies.down.shape[2] % 16 == 0

    def gated(both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, -1)
        return silu(gate) * up

    found = run_grouped(x, choice, copies.gate_up, copies.down, gated)
    assert torch.allclose(found, run_sorted(mlp, x, choice), atol=1e-4)
