"""Packed experts compute what each expert's channels of the dense MLP compute, however tokens are routed."""

import pytest
import torch

from thrifty.moe.experts import PackedMlp, Runs, Shape, choose, run_masked, run_sorted, suits_masks
from thrifty.moe.masking import masked
from thrifty.moe.model_type import mlp_state
from thrifty.moe.sites import found


def packed(model, plan, index: int = 0) -> PackedMlp:
    site = found(model)[index]
    state = mlp_state(plan, site)
    num_experts, stored = state["members"].shape
    flags = [name in state for name in ("gate", "up_bias", "out_bias", "router")]
    mlp = PackedMlp(Shape(num_experts, stored, *flags), site.width, site.activation)
    mlp.load_state_dict(state)
    return mlp


@pytest.mark.parametrize("num_experts", [1, 2, 5])
@pytest.mark.parametrize("num_tokens", [1, 3, 70])
def test_packed_experts_equal_masks(any_model, random, num_experts, num_tokens) -> None:
    plan, x = random(any_model, num_experts=num_experts), torch.randn(1, num_tokens, 48)
    with torch.inference_mode(), masked(any_model, plan):
        wanted = found(any_model)[0].mlp(x)
    with torch.inference_mode():
        assert torch.allclose(packed(any_model, plan)(x), wanted, atol=1e-5)


def test_experts_without_a_token_do_not_matter(tiny, random) -> None:
    model = tiny()
    mlp, x = packed(model, random(model)), torch.randn(6, 48)
    alone = torch.cat([run_sorted(mlp, row[None], torch.tensor([2])) for row in x])
    assert torch.allclose(run_sorted(mlp, x, torch.full((6,), 2)), alone, atol=1e-5)


def test_stored_channels_are_never_more_than_the_dense_ones(tiny, random) -> None:
    model = tiny()
    assert packed(model, random(model, num_experts=5)).up.shape[0] <= 96


def test_gradients_flow_to_weights_and_inputs(tiny, random) -> None:
    model = tiny()
    mlp, x = packed(model, random(model)), torch.randn(1, 20, 48, requires_grad=True)
    mlp(x).square().sum().backward()
    assert x.grad is not None
    assert all(weight.grad is not None for weight in (mlp.up, mlp.down, mlp.gate))


def test_half_precision_routes_as_float32_does(tiny, random) -> None:
    router, x = random(tiny()).evidence["layers.0.mlp.router"], torch.randn(200, 48).bfloat16()
    assert torch.equal(choose(router, x), (x.float() @ router.T).argmax(-1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(choose(router, x), (x.float() @ router.T).argmax(-1))


def test_one_expert_has_no_run_but_the_common_one() -> None:
    assert Runs.of(torch.ones(1, 7, dtype=torch.uint8)) == Runs(7, [[]])


@pytest.mark.parametrize("num_tokens", [1, 40])
def test_masks_and_sorted_tokens_agree(any_model, random, num_tokens) -> None:
    mlp, x = packed(any_model, random(any_model)), torch.randn(num_tokens, 48)
    choice = torch.randint(0, 4, (num_tokens,))
    assert torch.allclose(run_masked(mlp, x, choice), run_sorted(mlp, x, choice), atol=1e-5)


def test_few_tokens_an_expert_are_masked_and_many_sorted(tiny, random) -> None:
    mlp = packed(tiny(), random(tiny()))
    assert suits_masks(mlp, torch.randn(4 * 6 - 1, 48))
    assert not suits_masks(mlp, torch.randn(4 * 6, 48))
