"""One token streamed through its expert equals PyTorch, on a GPU and with `TRITON_INTERPRET=1` on a CPU."""

import importlib

import pytest
import torch

FORMS = [(True, False), (True, True), (False, True)]  # has_gate, has_bias


def single():
    return importlib.import_module("thrifty.moe.kernels.single")


@pytest.mark.parametrize(("has_gate", "has_bias"), FORMS)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("is_chosen", [True, False])
def test_the_token_goes_through_its_expert(kernels, rows, has_gate, has_bias, is_chosen) -> None:
    mlp = kernels.mlp(has_gate=has_gate, has_bias=has_bias)
    x = torch.randn(1, 48, device=kernels.device)
    wanted = torch.randint(0, 4, (1,), device=kernels.device) if is_chosen else (x @ mlp.router.T).argmax(-1)
    activation = "silu" if has_gate else "gelu"
    tuning = single().Tuning(rows=rows)
    found, choice = single().run_single(mlp, x, wanted if is_chosen else None, activation, tuning)
    assert choice.tolist() == wanted.tolist()
    assert kernels.error(found, kernels.right(mlp, x, wanted)) < 1e-6


@pytest.mark.parametrize("expert", range(4))
def test_rows_of_other_experts_are_not_read(kernels, expert) -> None:
    mlp = kernels.mlp()
    x, choice = torch.randn(1, 48, device=kernels.device), torch.full((1,), expert, device=kernels.device)
    wanted = kernels.right(mlp, x, choice)
    for weight in (mlp.gate, mlp.up, mlp.down):
        weight.data[mlp.members[expert] == 0] = float("nan")
    found, _ = single().run_single(mlp, x, choice, "silu")
    assert kernels.error(found, wanted) < 1e-6


@pytest.mark.parametrize("channels", [1, 3, 100])
def test_one_expert_needs_no_choice(kernels, channels) -> None:
    mlp = kernels.mlp(num_experts=1, channels=channels)  # with fewer channels than programs too
    x = torch.randn(1, 48, device=kernels.device)
    found, choice = single().run_single(mlp, x, None, "silu")
    assert choice is None
    assert kernels.error(found, kernels.right(mlp, x, None)) < 1e-6


def test_the_same_input_gives_the_same_bits(kernels) -> None:
    mlp, x = kernels.mlp(), torch.randn(1, 48, device=kernels.device)
    runs = [single().run_single(mlp, x, None, "silu")[0] for _ in range(3)]
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_of_equal_experts_the_first_is_chosen(kernels) -> None:
    mlp, x = kernels.mlp(), torch.randn(1, 48, device=kernels.device)
    mlp.router.data.fill_(1.0)
    assert single().run_single(mlp, x, None, "silu")[1].tolist() == [0]


def test_half_precision_rounds_once(kernels) -> None:
    mlp, x = kernels.mlp(dtype=torch.float16), torch.randn(1, 48, device=kernels.device).half()
    choice = (x.double() @ mlp.router.double().T).argmax(-1)
    found, _ = single().run_single(mlp, x, None, "silu")
    assert kernels.error(found, kernels.right(mlp, x, choice)) < 5e-4


@pytest.mark.gpu
def test_graph_replays_compute_what_a_call_computes(kernels) -> None:
    mlp = kernels.mlp(8, 14336 // 8, 1024, dtype=torch.bfloat16)
    x = torch.randn(1, 1024, device=kernels.device).bfloat16()
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.inference_mode(), torch.cuda.stream(side):
        for _ in range(2):
            single().run_single(mlp, x, None, "silu")
        with torch.cuda.graph(graph, stream=side):
            for _ in range(20):  # one after the other, so that kernels that start early meet others' memory
                found, choice = single().run_single(mlp, x, None, "silu")
    for _ in range(20):
        x.copy_(torch.randn(1, 1024))
        graph.replay()
        torch.cuda.synchronize()
        assert kernels.error(found, kernels.right(mlp, x, choice)) < 5e-3
