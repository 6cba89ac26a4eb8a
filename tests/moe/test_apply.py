"""Both layouts equal the masked dense model or are refused, and folders appear whole or not at all."""

import json
import subprocess
import sys

import pytest
import torch

from thrifty import llm
from thrifty.errors import ModelError, OutputError, SettingError
from thrifty.moe import apply as outputs
from thrifty.moe import standard
from thrifty.moe.masking import masked
from thrifty.plan import Plan

ALONE = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
torch.save(model(torch.load(sys.argv[2], weights_only=True)).logits.detach(), sys.argv[3])
assert not any(name.startswith("thrifty") for name in sys.modules)
"""


@pytest.mark.parametrize("layout", outputs.LAYOUTS)
@pytest.mark.parametrize("num_experts", [1, 4])
def test_the_result_equals_the_masked_model(layout, num_experts, tiny, random) -> None:
    model = tiny()
    plan = random(model, num_experts=num_experts)
    difference = outputs.compare(plan, model, outputs.apply(plan, model, layout))
    assert difference.largest < 1e-4
    assert difference.positions > 100


def test_the_dense_model_stays_as_it_is(tiny, random, tokens) -> None:
    model = tiny()
    before = model(tokens).logits
    outputs.apply(random(model), model)
    assert torch.equal(model(tokens).logits, before)


@pytest.mark.parametrize("layout", outputs.LAYOUTS)
@pytest.mark.parametrize("part", ["router", "expert", "attention"])
def test_an_export_that_is_wrong_is_refused(layout, part, tiny, random, monkeypatch) -> None:
    model = tiny()
    made = outputs.build(random(model), model, layout)
    weights = {name: weight for name, weight in made.named_parameters() if "layers.1" in name}
    wanted = {
        "router": (".router", "mlp.gate.weight"),
        "expert": (".up", "gate_up_proj"),
        "attention": ("v_proj.weight",),
    }
    name = next(name for name in weights if name.endswith(wanted[part]))
    with torch.no_grad():
        weights[name].copy_(weights[name].roll(1, 0))
    monkeypatch.setattr(outputs, "build", lambda *_: made)
    with pytest.raises(ModelError, match="differs from the masked one"):
        outputs.apply(random(model), model, layout)


def test_experts_that_tie_are_not_counted_as_errors(tiny, random) -> None:
    model = tiny()
    plan = random(model)
    router = plan.evidence["layers.0.mlp.router"]
    router[1] = router[0]  # every token of the first expert ties with the second
    difference = outputs.compare(plan, model, standard.build(plan, model))
    assert difference.is_small
    assert difference.positions < 224


def test_nothing_shown_is_no_success(tiny, random) -> None:
    model = tiny()
    plan = random(model)
    plan.evidence["layers.0.mlp.router"].zero_()
    assert not outputs.compare(plan, model, standard.build(plan, model)).is_small


def test_half_precision_is_checked_in_float32(tiny, random) -> None:
    model = tiny().bfloat16()
    for layout in outputs.LAYOUTS:
        made = outputs.apply(random(model), model, layout)
        assert next(made.parameters()).dtype == torch.bfloat16


def test_an_unknown_layout_is_refused(tiny, random) -> None:
    model = tiny()
    with pytest.raises(SettingError, match="use one of standard, tomoe"):
        outputs.build(random(model), model, "gguf")


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_a_process_without_thrifty_loads_the_standard_folder(family, tiny, random, tmp_path, tokens) -> None:
    model = tiny(family)
    made = outputs.apply(random(model), model)
    outputs.save(made, tmp_path / "out")
    torch.save(tokens, tmp_path / "tokens")
    paths = [str(tmp_path / name) for name in ("out", "tokens", "logits")]
    subprocess.run([sys.executable, "-c", ALONE, *paths], check=True, capture_output=True)
    assert torch.allclose(torch.load(paths[2], weights_only=True), made(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("layout", outputs.LAYOUTS)
def test_a_loaded_folder_generates_what_the_model_did(layout, tiny, random, tmp_path, tokens) -> None:
    model = tiny()
    made = outputs.apply(random(model), model, layout)
    outputs.save(made, tmp_path / "out")
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    again = outputs.load(tmp_path / "out")
    assert torch.equal(again.generate(tokens, **options), made.generate(tokens, **options))


@pytest.mark.parametrize("layout", outputs.LAYOUTS)
def test_a_folder_has_the_settings_of_generation_of_the_dense_model(layout, tiny, random, tmp_path) -> None:
    """Also settings that transformers warns of, as some published folders have them."""
    tiny().save_pretrained(tmp_path / "dense")
    file = tmp_path / "dense" / "generation_config.json"
    wanted = {"eos_token_id": [3, 5], "do_sample": False, "temperature": 0.6, "top_p": 0.8}
    file.write_text(json.dumps(json.loads(file.read_text()) | wanted))
    model = outputs.load(tmp_path / "dense")
    outputs.save(outputs.build(random(model), model, layout), tmp_path / "out")
    found = outputs.load(tmp_path / "out").generation_config
    assert {name: getattr(found, name) for name in wanted} == wanted


def test_a_folder_that_is_there_is_refused(tiny, random, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note").write_text("mine")
    with pytest.raises(OutputError, match="already holds files"):
        outputs.save(tiny(), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["note"]


def test_nothing_is_left_of_a_folder_that_could_not_be_written(tiny, tmp_path) -> None:
    class Full:
        def save_pretrained(self, folder) -> None:
            (folder / "tokenizer.json").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        outputs.save(tiny(), tmp_path / "out", Full())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_model_is_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match="cannot load"):
        outputs.load(tmp_path)


def test_a_plan_of_another_model_is_refused(tiny, random) -> None:
    model = tiny()
    with pytest.raises(SettingError, match=r"layers\.2"):
        outputs.apply(random(model), tiny(num_hidden_layers=2))
    with pytest.raises(SettingError):
        outputs.apply(Plan("none", {}), model)


@pytest.mark.slow
@pytest.mark.parametrize("layout", outputs.LAYOUTS)
def test_smollm2_is_exported_exactly(layout, random, tmp_path) -> None:
    dense = llm.load("smollm2")
    plan = random(dense.model, num_experts=4, widths=768, common=256)
    made = outputs.apply(plan, dense.model, layout)
    outputs.save(made, tmp_path / "out", dense.tokenizer)
    tokens = torch.tensor([dense.encode("The capital of France is")])
    with torch.inference_mode(), masked(dense.model, plan):
        wanted = dense.model(tokens).logits
    with torch.inference_mode():
        again = llm.load(tmp_path / "out").model(tokens).logits
    assert float((again - wanted).abs().max()) < outputs.TOLERANCE * float(wanted.abs().max())
    assert llm.load(tmp_path / "out").encode("Paris") == dense.encode("Paris")
