"""The kernel in C++ equals PyTorch, whichever variant runs, and is not missed where it cannot."""

import logging
import os
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from thrifty import native_build
from thrifty.errors import SettingError
from thrifty.moe import native_kernel
from thrifty.moe.experts import PackedMlp, Shape, choose, run_sorted
from thrifty.moe.packing import Packing

pytestmark = pytest.mark.skipif(native_build.compiler() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile once for all tests of a run, away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.getbasetemp()
        worker = "PYTEST_XDIST_WORKER" in os.environ
        patch.setenv("THRIFTY_CACHE", str(folder.parent if worker else folder))
        native_kernel._library.cache_clear()
        yield
    native_kernel._library.cache_clear()


@pytest.fixture(params=native_kernel.VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("THRIFTY_NATIVE", request.param)
    try:
        native_kernel.variant()
    except SettingError:
        pytest.skip(f"this machine cannot run {request.param}")
    return request.param


def experts(
    num_experts: int = 4, channels: int = 300, width: int = 45, gate: bool = True, bias: bool = False
) -> PackedMlp:
    members = Packing.of(torch.rand(num_experts, channels) < 0.5).members
    shape = Shape(num_experts, members.shape[1], gate, bias, bias, num_experts > 1)
    mlp = PackedMlp(shape, width, nn.SiLU() if gate else nn.GELU("tanh"))
    for parameter in mlp.parameters():
        nn.init.normal_(parameter, std=0.3)
    mlp.members.copy_(members)
    return mlp


def right(mlp: PackedMlp, x: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    exact = PackedMlp(mlp.shape, x.shape[1], mlp.activation)
    exact.load_state_dict(mlp.state_dict())
    out = run_sorted(exact.double(), x.double(), choice)
    return out if mlp.out_bias is None else out + exact.out_bias


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 50])
@pytest.mark.parametrize(("gate", "bias"), [(True, False), (True, True), (False, True)])
@torch.no_grad()
def test_each_token_goes_through_the_expert_its_router_chooses(variant, tokens, gate, bias) -> None:
    mlp, x = experts(gate=gate, bias=bias), torch.randn(tokens, 45)
    found, choice = native_kernel.run(mlp, x, None, "silu" if gate else "gelu")
    assert torch.equal(choice, choose(mlp.router, x))
    assert error(found, right(mlp, x, choice)) < 1e-5


@torch.no_grad()
def test_a_choice_that_is_given_is_followed(variant) -> None:
    mlp, x, choice = experts(), torch.randn(4, 45), torch.tensor([3, 0, 0, 2])
    found, same = native_kernel.run(mlp, x, choice, "silu")
    assert torch.equal(same, choice)
    assert error(found, right(mlp, x, choice)) < 1e-5


@pytest.mark.parametrize("tokens", [2, 20])
@torch.no_grad()
def test_rows_of_other_experts_are_not_read(variant, tokens) -> None:
    mlp, x, choice = experts(), torch.randn(tokens, 45), torch.full((tokens,), 1)
    wanted = right(mlp, x, choice)
    for weight in (mlp.gate, mlp.up, mlp.down):
        weight[mlp.members[1] == 0] = torch.nan
    assert error(native_kernel.run(mlp, x, choice, "silu")[0], wanted) < 1e-5


@torch.no_grad()
def test_bfloat16_differs_by_its_rounding_only(variant) -> None:
    mlp = experts(bias=True).bfloat16()
    mlp.router.data = mlp.router.float()
    x = torch.randn(3, 45).bfloat16()
    found, choice = native_kernel.run(mlp, x, None, "silu")
    assert found.dtype == torch.bfloat16
    assert error(found, right(mlp, x, choice)) < 5e-3


@pytest.mark.parametrize("tokens", [5, 40])
@torch.no_grad()
def test_result_does_not_depend_on_the_number_of_threads(variant, tokens, monkeypatch) -> None:
    mlp, x, found = experts(channels=1000), torch.randn(tokens, 45), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(native_kernel.run(mlp, x, None, "silu")[0])
        monkeypatch.setattr(native_build, "torch_threads", lambda: None)
        found.append(native_kernel.run(mlp, x, None, "silu")[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


@torch.no_grad()
def test_the_module_uses_it_where_it_can(monkeypatch) -> None:
    mlp, x = experts(), torch.randn(1, 3, 45)
    fast = mlp(x)
    assert torch.equal(fast[0], native_kernel.run(mlp, x[0], None, "silu")[0])
    monkeypatch.setenv("THRIFTY_NATIVE", "0")
    assert native_kernel.run(mlp, x[0], None, "silu") is None
    assert torch.allclose(mlp(x), fast, atol=1e-4)


def test_gradients_and_many_tokens_in_half_precision_are_left_to_pytorch() -> None:
    mlp = experts()
    assert native_kernel.run(mlp, torch.randn(2, 45), None, "silu") is None
    with torch.no_grad():
        many = torch.randn(native_kernel.FEW_TOKENS + 1, 45).bfloat16()
        mlp = mlp.bfloat16()
        mlp.router.data = mlp.router.float()
        assert native_kernel.run(mlp, many, None, "silu") is None


@pytest.mark.parametrize("given", [True, False])
@torch.no_grad()
def test_very_many_tokens_are_run_in_parts(given, monkeypatch) -> None:
    monkeypatch.setattr(native_kernel, "MOST_TOKENS", 30)
    mlp, x = experts(), torch.randn(100, 45)
    choice = torch.randint(0, 4, (100,)) if given else None
    found, chosen = native_kernel.run(mlp, x, choice, "silu")
    assert torch.equal(chosen, choice if given else choose(mlp.router, x))
    assert error(found, right(mlp, x, chosen)) < 1e-5


@pytest.mark.parametrize(("gate", "activation"), [(True, "silu"), (False, "gelu")])
@torch.no_grad()
def test_activations_hold_at_their_ends(variant, gate, activation) -> None:
    mlp, x = experts(gate=gate), torch.randn(12, 45) * 200
    found, choice = native_kernel.run(mlp, x, None, activation)
    assert error(found, right(mlp, x, choice)) < 1e-5


def test_a_variant_that_does_not_exist_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("THRIFTY_NATIVE", "sse")
    with pytest.raises(SettingError, match="use 0 or one of avx512, avx2, portable"):
        native_kernel.variant()


@torch.no_grad()
def test_without_a_compiler_pytorch_runs_after_one_warning(monkeypatch, caplog, tmp_path) -> None:
    mlp, x = experts(), torch.randn(1, 2, 45)
    wanted = mlp(x)
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    monkeypatch.setattr(native_build, "compiler", lambda: None)
    native_kernel._library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            found = [mlp(x) for _ in range(2)]
    finally:
        native_kernel._library.cache_clear()
    assert torch.allclose(found[0], wanted, atol=1e-4)
    assert len(caplog.records) == 1
