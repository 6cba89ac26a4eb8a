"""Channels are stored once, and every expert is a few runs of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from thrifty.moe.packing import Packing, common_of, runs_of


@given(some.integers(1, 6), some.integers(1, 40), some.integers(0, 2**31))
def test_the_runs_of_an_expert_are_its_channels(num_experts: int, channels: int, seed: int) -> None:
    masks = torch.rand(num_experts, channels, generator=torch.Generator().manual_seed(seed)) < 0.5
    packing = Packing.of(masks)
    assert torch.equal(packing.order.sort().values, masks.any(0).nonzero().flatten())
    common = common_of(packing.members)
    assert common == int(masks.all(0).sum())
    for mask, runs in zip(masks, runs_of(packing.members, common), strict=True):
        channels_of = [packing.order[first:last] for first, last in [(0, common), *runs]]
        assert torch.equal(torch.cat(channels_of).sort().values, mask.nonzero().flatten())
        assert all(first < last for first, last in runs)


@pytest.mark.parametrize("num_experts", [2, 3, 4, 8])
def test_disjoint_experts_beside_a_shared_part_are_one_run_each(num_experts: int) -> None:
    owner = torch.arange(200) % (num_experts + 1)
    masks = torch.stack([(owner == expert) | (owner == num_experts) for expert in range(num_experts)])
    packing = Packing.of(masks)
    assert [len(runs) for runs in runs_of(packing.members, common_of(packing.members))] == [1] * num_experts


def test_no_expert_has_more_runs_than_a_gray_code_allows() -> None:
    packing = Packing.of(torch.rand(8, 4096) < 0.5)
    runs = [len(runs) for runs in runs_of(packing.members, common_of(packing.members))]
    assert all(count <= max(1, 2 ** (number - 1)) + 1 for number, count in enumerate(runs)), runs
