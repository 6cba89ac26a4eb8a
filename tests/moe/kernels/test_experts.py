"""Many tokens through matrices of their experts equal PyTorch, on a GPU and with `TRITON_INTERPRET=1` on a CPU."""

import importlib

import pytest
import torch
from torch.nn.functional import gelu, silu

RIGHT = {"silu": silu, "gelu": lambda x: gelu(x, approximate="tanh")}


def experts():
    return importlib.import_module("thrifty.moe.kernels.experts")


def weights(kernels, num_experts: int, channels: int, width: int, dtype=torch.float16):
    shapes = (num_experts, 2 * channels, width), (num_experts, width, channels)
    return [torch.randn(shape, device=kernels.device).to(dtype) / shape[2] ** 0.5 for shape in shapes]


def right(x, choice, gate_up, down, activation):
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for expert in choice.unique():
        mine = choice == expert
        gate, up = (x[mine].double() @ gate_up[expert].double().T).chunk(2, -1)
        out[mine] = (RIGHT[activation](gate) * up) @ down[expert].double().T
    return out


def small(**changes: int):
    return experts().Tuning(**{"rows": 32, "depth": 16, "columns": 32, "stages": 2, "tall_stages": 2} | changes)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("counts", [(32, 0, 40, 7), (0, 0, 0, 70), (33, 48, 49, 64), (1, 0, 0, 0)])
def test_each_token_goes_through_its_expert(kernels, counts, activation) -> None:
    tokens = sum(counts)
    x = torch.randn(tokens, 48, device=kernels.device).half()
    choice = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))[torch.randperm(tokens)]
    choice = choice.to(kernels.device, torch.int32)
    gate_up, down = weights(kernels, 4, 40, 48)
    tuning = experts().Tuning() if kernels.device == "cuda" else small()
    found = experts().run_experts(x, choice, gate_up, down, activation, tuning)
    assert kernels.error(found, right(x, choice, gate_up, down, activation)) < 1e-3


def test_other_experts_are_not_read(kernels) -> None:
    x = torch.randn(40, 48, device=kernels.device).half()
    choice = torch.full((40,), 1, device=kernels.device, dtype=torch.int32)
    gate_up, down = weights(kernels, 3, 40, 48)
    wanted = right(x, choice, gate_up, down, "silu")
    for weight in (gate_up, down):
        weight[[0, 2]] = float("nan")
    tuning = experts().Tuning() if kernels.device == "cuda" else small()
    assert kernels.error(experts().run_experts(x, choice, gate_up, down, "silu", tuning), wanted) < 1e-3
