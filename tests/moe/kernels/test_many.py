"""Many tokens through the gathering products in Triton equal PyTorch, on a GPU and with `TRITON_INTERPRET=1`."""

import importlib

import pytest
import torch


def many():
    return importlib.import_module("thrifty.moe.kernels.many")


SMALL = {"rows": 16, "channels": 16, "columns": 32, "out_channels": 16, "out_columns": 32}


@pytest.mark.parametrize(("has_gate", "has_bias"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("tokens", [1, 40, 70])
def test_each_token_goes_through_its_expert(kernels, tokens, has_gate, has_bias) -> None:
    mlp = kernels.mlp(has_gate=has_gate, has_bias=has_bias)
    x = torch.randn(tokens, 48, device=kernels.device)
    choice = torch.randint(0, 4, (tokens,), device=kernels.device)
    choice[choice == 2] = 1  # an expert without a token
    activation = "silu" if has_gate else "gelu"
    found = many().run_many(mlp, x, choice, many().Table.of(mlp.members), activation, many().Tuning(**SMALL))
    assert kernels.error(found, kernels.right(mlp, x, choice)) < 1e-5


def test_the_table_lists_the_channels_of_each_expert(kernels) -> None:
    members = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]], dtype=torch.uint8)
    table = many().Table.of(members)
    assert table.widths.tolist() == [3, 1]
    assert table.channels[0].tolist() == [0, 2, 3]
    assert int(table.channels[1, 0]) == 1


def test_rows_of_other_experts_are_not_read(kernels) -> None:
    mlp = kernels.mlp()
    x, choice = torch.randn(20, 48, device=kernels.device), torch.full((20,), 3, device=kernels.device)
    wanted = kernels.right(mlp, x, choice)
    for weight in (mlp.gate, mlp.up, mlp.down):
        weight.data[mlp.members[3] == 0] = float("nan")
    found = many().run_many(mlp, x, choice, many().Table.of(mlp.members), "silu", many().Tuning(**SMALL))
    assert kernels.error(found, wanted) < 1e-5
