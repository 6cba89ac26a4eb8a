"""The standard layout: stock classes, exact, and a refusal with a way out for what they cannot hold."""

import pytest
import torch

from thrifty.errors import ModelError, SettingError
from thrifty.moe import apply as outputs
from thrifty.moe import standard
from thrifty.plan import Plan

CLASSES = {
    "Llama": "MixtralForCausalLM",
    "Mistral": "MixtralForCausalLM",
    "Qwen2": "Qwen2MoeForCausalLM",
    "Qwen3": "Qwen3MoeForCausalLM",
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", CLASSES)
def test_a_stock_class_equals_the_masks(family, tied, tiny, random) -> None:
    model = tiny(family, tie_word_embeddings=tied)
    plan = random(model)
    made = standard.build(plan, model)
    assert type(made).__name__ == CLASSES[family]
    difference = outputs.compare(plan, model, made)
    assert difference.is_small
    assert difference.largest < 1e-4


@pytest.mark.parametrize("family", CLASSES)
def test_one_expert_is_the_same_architecture_with_a_smaller_mlp(family, tiny, random) -> None:
    model = tiny(family)
    plan = random(model, num_experts=1, widths=32)
    made = standard.build(plan, model)
    assert type(made) is type(model)
    assert made.config.intermediate_size == 32
    assert outputs.compare(plan, model, made).is_small


@pytest.mark.parametrize("family", CLASSES)
def test_rotary_scaling_is_carried_over(family, tiny, random) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0}
    model = tiny(family, rope_parameters=rope)
    made = standard.build(random(model), model)
    assert made.config.rope_parameters == model.config.rope_parameters
    assert outputs.compare(random(model), model, made).is_small


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"widths": [48, 48, 32]}, "one width for all layers.*32 to 48"),
        ({"widths": 40}, "multiples of 16"),
    ],
)
def test_widths_it_cannot_hold_are_refused(change, reason, tiny, random) -> None:
    model = tiny()
    with pytest.raises(SettingError, match=reason):
        standard.build(random(model, **change), model)


def test_what_stock_classes_lack_is_refused(tiny, random) -> None:
    model, extra = tiny(), torch.zeros(48)
    plan = random(model)
    thin = {"layers.0.attention.qk": torch.tensor([1, 0, 1, 1, 0, 1.0])}
    with pytest.raises(SettingError, match="thinned attention"):
        standard.build(Plan("x", plan.keep | thin, plan.evidence), model)
    with pytest.raises(SettingError, match="bias"):
        standard.build(Plan("x", plan.keep, plan.evidence | {"layers.0.mlp.bias": extra}), model)
    with pytest.raises(SettingError, match="once for all"):
        standard.build(Plan("x", plan.keep, plan.evidence | {"router.source": torch.tensor(0)}), model)
    with pytest.raises(ModelError, match="phi"):
        standard.build(plan, tiny("Phi"))
    with pytest.raises(ModelError, match="attention has biases"):
        standard.build(plan, tiny(attention_bias=True))


def test_whole_attention_in_a_plan_is_no_obstacle(tiny, random) -> None:
    model = tiny()
    plan = random(model)
    whole = {f"layers.{i}.attention.qk": torch.ones(6) for i in range(3)}
    assert standard.check(Plan("x", plan.keep | whole, plan.evidence), model) == (4, 48)
