"""The layers of every family are found, and what cannot be converted is refused with a reason."""

import pytest
import torch
import transformers
from torch import nn

from thrifty.errors import ModelError
from thrifty.moe.sites import found


def test_every_family_is_found(any_model) -> None:
    sites = found(any_model)
    assert [site.name for site in sites] == ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]
    for site in sites:
        attention = site.attention
        assert (site.width, site.channels) == (48, 96)
        assert (attention.heads, attention.kv_heads, attention.head_dim) == (4, 2, 12)


def test_the_formula_of_a_site_is_its_mlp(any_model) -> None:
    site, x = found(any_model)[1], torch.randn(5, 48)
    hidden = site.activation(site.up(x)) if site.gate is None else site.activation(site.gate(x)) * site.up(x)
    assert torch.allclose(site.down(hidden), site.mlp(x), atol=1e-6)


def test_what_differs_between_families_is_read(tiny) -> None:
    assert found(tiny("Phi"))[0].gate is None
    assert found(tiny("Qwen2"))[0].attention.q.bias is not None
    assert found(tiny("Qwen3"))[0].attention.q_norm is not None
    assert [found(tiny(name))[0].attention.can_drop_pairs for name in ("Llama", "Qwen3", "Phi")] == [True, False, False]


def test_a_mixture_of_experts_is_refused(tiny) -> None:
    with pytest.raises(ModelError, match="experts already"):
        found(tiny("Mixtral", num_local_experts=2))


def test_an_encoder_is_refused() -> None:
    small = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    bert = transformers.BertModel(transformers.BertConfig(**small, num_attention_heads=2))
    with pytest.raises(ModelError, match="no decoder layers"):
        found(bert)
    t5 = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    with pytest.raises(ModelError, match="encoder"):
        found(transformers.T5ForConditionalGeneration(t5))


def test_an_unknown_structure_says_what_was_looked_for(tiny) -> None:
    model = tiny()
    model.model.layers[1].mlp.gate_proj = nn.Identity()
    with pytest.raises(ModelError, match=r"layer 1.*gate_proj, up_proj, down_proj or fc1, fc2"):
        found(model)


def test_a_model_in_the_tomoe_layout_is_a_mixture_already(tiny, random) -> None:
    from thrifty.moe import model_type

    with pytest.raises(ModelError, match="mixture of experts already"):
        found(model_type.build(random(tiny()), tiny()))
