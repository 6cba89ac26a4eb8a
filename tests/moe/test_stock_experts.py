"""Our function for the experts of stock mixtures equals transformers' own."""

import pytest
import torch

from thrifty.moe import standard
from thrifty.moe.stock_experts import IMPLEMENTATION, register_experts


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("num_tokens", [1, 2, 33])
def test_it_equals_the_eager_one(family, num_tokens, tiny, random, tokens) -> None:
    model = tiny(family)
    made = standard.build(random(model), model)
    register_experts()
    with torch.inference_mode():
        made.set_experts_implementation("eager")
        wanted = made(tokens[:1, :num_tokens]).logits
        made.set_experts_implementation(IMPLEMENTATION)
        assert torch.allclose(made(tokens[:1, :num_tokens]).logits, wanted, atol=1e-5)


def test_several_experts_a_token_are_handed_over(tiny, tokens) -> None:
    register_experts()
    model = tiny("Mixtral", num_local_experts=4, num_experts_per_tok=2)
    with torch.inference_mode():
        model.set_experts_implementation("eager")
        wanted = model(tokens).logits
        model.set_experts_implementation(IMPLEMENTATION)
        assert torch.allclose(model(tokens).logits, wanted, atol=1e-4)


def test_a_routing_weight_that_is_not_one_is_not_lost(tiny, tokens) -> None:
    register_experts()
    model = tiny("Qwen3Moe", num_experts=4, num_experts_per_tok=1, moe_intermediate_size=32, norm_topk_prob=False)
    with torch.inference_mode():
        model.set_experts_implementation("eager")
        wanted = model(tokens).logits
        model.set_experts_implementation(IMPLEMENTATION)
        assert torch.allclose(model(tokens).logits, wanted, atol=1e-4)
