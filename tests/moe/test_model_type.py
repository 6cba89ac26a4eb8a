"""The tomoe layout: any widths, thinned attention, known to transformers without code in the folder."""

import json
import subprocess
import sys

import pytest
import torch
import transformers

from thrifty.errors import ModelError
from thrifty.moe import apply as outputs
from thrifty.moe import model_type
from thrifty.plan import Plan


def pairs(model, kept: int) -> dict:
    half = model.config.hidden_size // model.config.num_attention_heads // 2
    return {f"layers.{i}.attention.qk": (torch.arange(half) % 6 < kept).float() for i in range(2)}


def test_widths_may_differ_between_layers_and_experts(any_model, random) -> None:
    plan = random(any_model, widths=[16, 33, 80])
    plan.keep["layers.1.mlp"][0, :40] = 1.0
    assert outputs.compare(plan, any_model, model_type.build(plan, any_model)).is_small


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2"])
def test_fewer_pairs_make_smaller_projections_and_caches(family, tiny, random, tokens) -> None:
    model = tiny(family)
    plan = random(model)
    plan = Plan("x", plan.keep | pairs(model, 4), plan.evidence)
    made = model_type.build(plan, model)
    assert outputs.compare(plan, model, made).is_small
    first = made.model.layers[0].self_attn
    assert first.q_proj.weight.shape[0] == 4 * 8
    assert first.scaling == 12**-0.5  # of the whole head
    cache = made(tokens, use_cache=True).past_key_values
    assert cache.layers[0].keys.shape[-1] == 8
    assert cache.layers[0].values.shape[-1] == 12


def test_a_layer_that_the_plan_does_not_name_stays_dense(tiny, random) -> None:
    model = tiny()
    plan = random(model)
    part = Plan("part", {"layers.1.mlp": plan.keep["layers.1.mlp"]}, plan.evidence)
    made = model_type.build(part, model)
    assert outputs.compare(part, model, made).is_small
    assert type(made.model.layers[0].mlp).__name__ == "LlamaMLP"


def test_one_router_may_choose_for_all_layers(tiny, random) -> None:
    model = tiny()
    plan = random(model)
    read = {"layers.0.mlp.router": plan.evidence["layers.0.mlp.router"], "router.source": torch.tensor(0)}
    made = model_type.build(Plan("read", plan.keep, read), model)
    assert outputs.compare(Plan("read", plan.keep, read), model, made).is_small
    assert [layer.mlp.router is not None for layer in made.model.layers] == [True, False, False]


def test_a_bias_after_the_mlp_is_held(any_model, random) -> None:
    plan = random(any_model, num_experts=1)
    plan.evidence["layers.1.mlp.bias"] = torch.randn(48)
    assert outputs.compare(plan, any_model, model_type.build(plan, any_model)).is_small


def test_decoding_with_a_cache_equals_reading_at_once(any_model, random, tokens) -> None:
    made = model_type.build(random(any_model), any_model)
    with torch.inference_mode():
        whole = made(tokens).logits
        cache = made(tokens[:, :20], use_cache=True).past_key_values
        rest = made(tokens[:, 20:], past_key_values=cache).logits
    assert torch.allclose(rest, whole[:, 20:], atol=1e-4)


def test_the_folder_holds_no_code_and_auto_classes_know_it(any_model, random, tmp_path, tokens) -> None:
    made = model_type.build(random(any_model), any_model)
    outputs.save(made, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    model_type.register()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.inference_mode():
        assert torch.equal(again(tokens).logits, made(tokens).logits)


ALONE = """
import sys, torch, transformers
from thrifty import llm
transformers.AutoTokenizer.from_pretrained = lambda *_, **__: None
print(type(llm.load(sys.argv[1]).model).__name__)
"""


def test_whatever_thrifty_loads_may_be_of_this_layout(tiny, random, tmp_path) -> None:
    outputs.save(model_type.build(random(tiny()), tiny()), tmp_path / "out")
    done = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.stdout.strip() == "TomoeLlamaForCausalLM", done.stderr


def test_routers_stay_in_float32(tiny, random, tmp_path) -> None:
    made = model_type.build(random(tiny()), tiny().bfloat16())
    outputs.save(made, tmp_path / "out")
    again = outputs.load(tmp_path / "out")
    for model in (made, again):
        assert model.model.layers[0].mlp.router.dtype == torch.float32
        assert model.model.layers[0].mlp.up.dtype == torch.bfloat16


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ModelError, match="does not know"):
        model_type.classes("gpt2")
