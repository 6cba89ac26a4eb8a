"""A few tokens through the kernels in Triton equal PyTorch, on a GPU and with `TRITON_INTERPRET=1` on a CPU."""

import importlib

import pytest
import torch

FORMS = [(True, False), (True, True), (False, True)]  # has_gate, has_bias


def few():
    return importlib.import_module("thrifty.moe.kernels.few")


@pytest.mark.parametrize(("has_gate", "has_bias"), FORMS)
@pytest.mark.parametrize("tokens", [1, 5, 17])
def test_each_token_goes_through_its_expert(kernels, tokens, has_gate, has_bias) -> None:
    mlp = kernels.mlp(has_gate=has_gate, has_bias=has_bias)
    x = torch.randn(tokens, 48, device=kernels.device)
    choice = torch.randint(0, 4, (tokens,), device=kernels.device, dtype=torch.int32)
    tuning = few().Tuning(columns=32, out_channels=16, out_columns=32, splits=3)
    found = few().run_few(mlp, x, choice, "silu" if has_gate else "gelu", tuning)
    assert kernels.error(found, kernels.right(mlp, x, choice)) < 1e-5


@pytest.mark.parametrize("expert", range(4))
def test_rows_of_other_experts_are_not_read(kernels, expert) -> None:
    mlp = kernels.mlp()
    x, choice = torch.randn(2, 48, device=kernels.device), torch.full((2,), expert, dtype=torch.int32)
    wanted = kernels.right(mlp, x, choice.to(kernels.device))
    others = mlp.members[expert] == 0
    for weight in (mlp.gate, mlp.up, mlp.down):
        weight.data[others] = float("nan")
    found = few().run_few(mlp, x, choice.to(kernels.device), "silu")
    assert kernels.error(found, wanted) < 1e-5


def test_one_expert_needs_no_choice(kernels) -> None:
    mlp = kernels.mlp(num_experts=1)
    x = torch.randn(3, 48, device=kernels.device)
    assert kernels.error(few().run_few(mlp, x, None, "silu"), kernels.right(mlp, x, None)) < 1e-5


def test_float16_is_as_exact_as_it_can_be(kernels) -> None:
    mlp = kernels.mlp(dtype=torch.float16)
    x = torch.randn(9, 48, device=kernels.device).half()
    choice = torch.randint(0, 4, (9,), device=kernels.device, dtype=torch.int32)
    assert kernels.error(few().run_few(mlp, x, choice, "silu"), kernels.right(mlp, x, choice)) < 3e-3


@pytest.mark.parametrize("num_experts", [2, 5, 8])
@pytest.mark.parametrize("tokens", [7, 83])
def test_the_router_chooses_the_largest(kernels, tokens, num_experts) -> None:
    x = torch.randn(tokens, 300, device=kernels.device)
    router = torch.randn(num_experts, 300, device=kernels.device)
    assert few().route(x, router).tolist() == (x @ router.T).argmax(-1).tolist()


@pytest.mark.parametrize("num_experts", [2, 8, 20])
def test_tokens_in_bfloat16_are_routed_as_in_float32(kernels, bfloat16_dot, num_experts) -> None:
    x = torch.randn(150, 300, device=kernels.device).bfloat16()
    router = torch.randn(num_experts, 300, device=kernels.device)
    wanted = (x.double() @ router.double().T).topk(2).values
    found = (x.double() @ router.double().T).gather(1, few().route(x, router).long()[:, None])[:, 0]
    assert torch.allclose(found, wanted[:, 0], atol=1e-4)  # the best, or one that float32 cannot tell from it
    assert bool((wanted[:, 0] - wanted[:, 1] < 1e-4).sum() < 3)  # which nearly never happens here


def test_of_equal_experts_the_first_is_chosen(kernels) -> None:
    x, router = torch.randn(4, 64, device=kernels.device), torch.ones(3, 64, device=kernels.device)
    assert few().route(x, router).tolist() == [0, 0, 0, 0]
