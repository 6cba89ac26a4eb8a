"""Products of matrix and vector for a handful of tokens equal PyTorch, on a GPU and with `TRITON_INTERPRET=1`."""

import importlib

import pytest
import torch

FORMS = [(True, False), (True, True), (False, True)]  # has_gate, has_bias


def decode():
    return importlib.import_module("thrifty.moe.kernels.decode")


def small(**changes: int):
    return decode().Tuning(**{"rows": 2, "steps": 3, "out_rows": 4, "out_columns": 32, "splits": 3} | changes)


@pytest.mark.parametrize(("has_gate", "has_bias"), FORMS)
@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("is_chosen", [True, False])
def test_each_token_goes_through_its_expert(kernels, tokens, has_gate, has_bias, is_chosen) -> None:
    mlp = kernels.mlp(has_gate=has_gate, has_bias=has_bias)
    x = torch.randn(tokens, 48, device=kernels.device)
    wanted = torch.randint(0, 4, (tokens,), device=kernels.device) if is_chosen else (x @ mlp.router.T).argmax(-1)
    activation = "silu" if has_gate else "gelu"
    found, choice = decode().run_decode(mlp, x, wanted if is_chosen else None, activation, small())
    assert choice.tolist() == wanted.tolist()
    assert kernels.error(found, kernels.right(mlp, x, wanted)) < 1e-6


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("expert", range(4))
def test_rows_of_other_experts_are_not_read(kernels, expert, tokens) -> None:
    mlp = kernels.mlp()
    x, choice = torch.randn(tokens, 48, device=kernels.device), torch.full((tokens,), expert, device=kernels.device)
    wanted = kernels.right(mlp, x, choice)
    for weight in (mlp.gate, mlp.up, mlp.down):
        weight.data[mlp.members[expert] == 0] = float("nan")
    found, _ = decode().run_decode(mlp, x, choice, "silu", small())
    assert kernels.error(found, wanted) < 1e-6


def test_what_one_token_needs_does_not_reach_another(kernels) -> None:
    mlp = kernels.mlp(channels=40)
    x, choice = torch.randn(2, 48, device=kernels.device), torch.tensor([0, 1], device=kernels.device)
    x[1] = 1e30  # its channels overflow, also those that only the other token's expert has
    found, _ = decode().run_decode(mlp, x, choice, "silu", small())
    assert kernels.error(found[:1], kernels.right(mlp, x, choice)[:1]) < 1e-6


@pytest.mark.parametrize("tokens", [1, 3])
def test_one_expert_needs_no_choice(kernels, tokens) -> None:
    mlp = kernels.mlp(num_experts=1)
    x = torch.randn(tokens, 48, device=kernels.device)
    found, choice = decode().run_decode(mlp, x, None, "silu", small())
    assert choice is None
    assert kernels.error(found, kernels.right(mlp, x, None)) < 1e-6


@pytest.mark.parametrize("tokens", [1, 2, 4, 8])
def test_the_usual_tuning_in_half_precision_rounds_once(kernels, tokens) -> None:
    mlp = kernels.mlp(dtype=torch.float16)
    mlp.router.data = mlp.router.data.float()
    x = torch.randn(tokens, 48, device=kernels.device).half()
    found, choice = decode().run_decode(mlp, x, None, "silu")
    assert kernels.error(found, kernels.right(mlp, x, choice)) < 5e-4


def test_the_same_input_gives_the_same_bits(kernels) -> None:
    mlp, x = kernels.mlp(), torch.randn(1, 48, device=kernels.device)
    runs = [decode().run_decode(mlp, x, None, "silu", small())[0] for _ in range(3)]
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_of_equal_experts_the_first_is_chosen(kernels) -> None:
    mlp, x = kernels.mlp(), torch.randn(2, 48, device=kernels.device)
    mlp.router.data.fill_(1.0)
    assert decode().run_decode(mlp, x, None, "silu", small())[1].tolist() == [0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 2, 8])
def test_graph_replays_compute_what_a_call_computes(kernels, tokens) -> None:
    mlp = kernels.mlp(8, 14336 // 8, 1024, dtype=torch.bfloat16)
    x = torch.randn(tokens, 1024, device=kernels.device).bfloat16()
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.inference_mode(), torch.cuda.stream(side):
        for _ in range(2):
            decode().run_decode(mlp, x, None, "silu")
        with torch.cuda.graph(graph, stream=side):
            for _ in range(20):  # one after the other, so that kernels that start early meet others' memory
                found, choice = decode().run_decode(mlp, x, None, "silu")
    for _ in range(20):
        x.copy_(torch.randn(tokens, 1024))
        graph.replay()
        torch.cuda.synchronize()
        assert kernels.error(found, kernels.right(mlp, x, choice)) < 5e-3
