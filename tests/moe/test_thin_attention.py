"""Values masked for each token, and rotary pairs left out, equal the masks on the dense model."""

import pytest
import torch

from thrifty.moe import apply as outputs
from thrifty.moe import model_type
from thrifty.moe.sites import found
from thrifty.moe.thin_attention import KeptPairs
from thrifty.plan import Plan


def masks_of_values(model, count: int, inner: int = 8) -> Plan:
    keep, evidence = {}, {}
    for site in found(model):
        name, h = f"{site.attention_name}.vo", site.attention.head_dim
        keep[name] = (torch.arange(h) < count).float()
        shapes = {"down": (inner, site.width), "norm_weight": inner, "norm_bias": inner, "shift": inner}
        evidence |= {f"{name}.{part}": torch.randn(shape) for part, shape in (shapes | {"up": (h, inner)}).items()}
    return Plan("random", keep, evidence)


def test_masked_values_equal_masks_on_the_dense_model(any_model) -> None:
    plan = masks_of_values(any_model, 5)
    made = model_type.build(plan, any_model)
    assert outputs.compare(plan, any_model, made).is_small


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2"])
def test_both_together_survive_saving(family, tiny, random, tmp_path, tokens) -> None:
    model = tiny(family)
    mlp, values = random(model), masks_of_values(model, 7)
    pairs = {"layers.2.attention.qk": torch.tensor([0, 1, 1, 0, 0, 1.0])}
    plan = Plan("all", mlp.keep | values.keep | pairs, mlp.evidence | values.evidence)
    made = outputs.apply(plan, model, "tomoe")
    outputs.save(made, tmp_path / "out")
    with torch.inference_mode():
        assert torch.equal(outputs.load(tmp_path / "out")(tokens).logits, made(tokens).logits)


def test_kept_pairs_take_their_angles_along() -> None:
    kept = KeptPairs(2)
    kept.kept.copy_(torch.tensor([1, 3]))
    rotation = torch.arange(4.0).repeat(2)[None, None]  # transformers repeats the angles of the pairs
    assert kept.of(rotation).flatten().tolist() == [1, 3, 1, 3]
