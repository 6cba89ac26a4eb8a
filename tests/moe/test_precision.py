"""In half precision only weights are rounded: what is made rotates, measures and is loaded as the dense model."""

import pytest
import torch
import transformers

from thrifty.moe import apply as outputs
from thrifty.moe.heal import Heal
from thrifty.moe.job import MoeJob

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=HALVES, ids=str)
def loaded(request, tiny, tmp_path) -> transformers.PreTrainedModel:
    """A tiny Llama as transformers loads it in half precision."""
    tiny().save_pretrained(tmp_path / "dense")
    return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=request.param)


@pytest.mark.parametrize("layout", outputs.LAYOUTS)
def test_rotations_of_a_loaded_half_model_stay_in_float32(layout, loaded, random) -> None:
    made = outputs.apply(random(loaded), loaded, layout)
    assert made.dtype == loaded.dtype
    assert torch.equal(made.model.rotary_emb.inv_freq, loaded.model.rotary_emb.inv_freq)
    assert made.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("layout", outputs.LAYOUTS)
def test_what_is_measured_in_half_precision_is_what_is_loaded(layout, loaded, random, tmp_path, tokens) -> None:
    made = outputs.build(random(loaded), loaded, layout)
    outputs.save(made, tmp_path / "out")
    again = outputs.load(tmp_path / "out")
    state = again.state_dict()
    assert all(value.dtype == state[name].dtype for name, value in made.state_dict().items())
    with torch.inference_mode():
        assert torch.equal(again.float()(tokens).logits, made.float()(tokens).logits)


@pytest.mark.parametrize("how", ["lora", "full"])
def test_a_half_model_is_healed_with_its_rotations_as_they_were(how, loaded, corpus, random) -> None:
    healed = Heal(how, steps=1)(MoeJob.of(loaded, corpus, 0.5, batch=1), random(loaded))
    assert all(parameter.dtype == loaded.dtype for parameter in healed.parameters())
    assert torch.equal(healed.model.rotary_emb.inv_freq, loaded.model.rotary_emb.inv_freq)
