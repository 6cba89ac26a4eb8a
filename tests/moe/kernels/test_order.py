"""Tokens are brought into the order of their experts and back, on a GPU and with `TRITON_INTERPRET=1` on a CPU."""

import importlib

import pytest
import torch

from thrifty.moe.grouped import sorted_by_expert


def order():
    return importlib.import_module("thrifty.moe.kernels.order")


@pytest.mark.parametrize("tokens", [0, 1, 70, 5000])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_order_is_that_of_a_stable_sort(kernels, tokens, dtype) -> None:
    choice = torch.randint(0, 5, (tokens,), device=kernels.device, dtype=dtype)
    choice[choice == 3] = 1  # an expert without a token
    wanted, ends = sorted_by_expert(choice, 5)
    found = order().order_of(choice, 5)
    assert found[0].tolist() == wanted.tolist()
    assert found[1].tolist() == ends.tolist()


@pytest.mark.parametrize("width", [48, 5000])
def test_rows_go_there_and_back(kernels, width) -> None:
    x = torch.randn(9, width, device=kernels.device)
    places = torch.randperm(9, device=kernels.device).int()
    rows, out = order().gathered(x, places), torch.empty_like(x)
    assert torch.equal(rows, x[places.long()])
    order().scatter(rows, places, out)
    assert torch.equal(out, x)
