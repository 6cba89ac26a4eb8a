"""Masks are what a plan says: whole experts change nothing, dropped channels act as if their weights were zero."""

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.moe.masking import chosen, masked
from thrifty.moe.sites import found
from thrifty.plan import Plan


def logits(model, tokens):
    with torch.inference_mode():
        return model(tokens).logits


def token_mask(model, count: int) -> Plan:
    """A plan that masks the values of every layer, with random networks."""
    keep, evidence = {}, {}
    for site in found(model):
        name, h = f"{site.attention_name}.vo", site.attention.head_dim
        keep[name] = (torch.arange(h) < count).float()
        shapes = {"down": (8, site.width), "norm_weight": (8,), "norm_bias": (8,), "shift": (8,), "up": (h, 8)}
        evidence |= {f"{name}.{part}": torch.randn(shape) for part, shape in shapes.items()}
    return Plan("random", keep, evidence)


def test_whole_experts_change_nothing(any_model, random, tokens) -> None:
    dense = logits(any_model, tokens)
    with masked(any_model, random(any_model, widths=96)):
        assert torch.equal(logits(any_model, tokens), dense)


def test_nothing_is_left_behind(any_model, random, tokens) -> None:
    dense = logits(any_model, tokens)
    with masked(any_model, random(any_model)):
        assert not torch.allclose(logits(any_model, tokens), dense, atol=0.1)
    assert torch.equal(logits(any_model, tokens), dense)


def test_a_dropped_channel_is_as_if_its_weights_were_zero(any_model, random, tokens) -> None:
    plan = random(any_model, num_experts=1)
    with masked(any_model, plan):
        found_logits = logits(any_model, tokens)
    for site in found(any_model):
        site.down.weight.data *= plan.keep[site.name][0]
    assert torch.allclose(found_logits, logits(any_model, tokens), atol=1e-4)


def test_each_token_has_the_mask_of_its_expert(tiny, random) -> None:
    model = tiny()
    plan, site, x = random(model), found(model)[0], torch.randn(1, 9, 48)
    expert = chosen(plan.evidence["layers.0.mlp.router"], x)
    assert len(expert.unique()) > 1
    hidden = site.activation(site.gate(x)) * site.up(x) * plan.keep["layers.0.mlp"][expert]
    with masked(model, plan):
        assert torch.allclose(site.mlp(x), site.down(hidden), atol=1e-6)


def test_pre_gating_routes_all_layers_by_one(tiny, random, tokens) -> None:
    model, inputs = tiny(), {}
    plan = random(model)
    only = {"layers.0.mlp.router": plan.evidence["layers.0.mlp.router"], "router.source": torch.tensor(0)}
    for site in found(model):
        site.down.register_forward_pre_hook(lambda m, x, name=site.name: inputs.__setitem__(name, x[0]))
    first = {}
    found(model)[0].mlp.register_forward_pre_hook(lambda m, x: first.__setitem__("x", x[0]))
    with masked(model, Plan("read", plan.keep, only)):
        logits(model, tokens)
    expert = chosen(only["layers.0.mlp.router"], first["x"])
    for name, hidden in inputs.items():  # hooks set here run before those of `masked`
        assert hidden.shape[:2] == expert.shape, name


def test_a_bias_is_added_to_the_output(tiny, random) -> None:
    model, x = tiny(), torch.randn(1, 5, 48)
    plan = random(model, num_experts=1)
    site, bias = found(model)[2], torch.randn(48)
    with masked(model, plan):
        without = site.mlp(x)
    with masked(model, Plan("bias", plan.keep, {"layers.2.mlp.bias": bias})):
        assert torch.allclose(site.mlp(x), without + bias, atol=1e-6)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2"])
def test_dropped_pairs_are_as_if_their_weights_were_zero(family, tiny, tokens) -> None:
    model = tiny(family)
    pairs = torch.tensor([1, 0, 1, 1, 0, 1.0])
    with masked(model, Plan("pairs", {f"layers.{i}.attention.qk": pairs for i in range(3)})):
        found_logits = logits(model, tokens)
    for site in found(model):
        for side in (site.attention.q, site.attention.k):
            rows = pairs.repeat(2).repeat(side.out_features // 12)
            side.weight.data *= rows[:, None]
            if side.bias is not None:
                side.bias.data *= rows
    assert torch.allclose(found_logits, logits(model, tokens), atol=1e-4)


@pytest.mark.parametrize(("family", "reason"), [("Phi", "rotated"), ("Qwen3", "norm")])
def test_pairs_that_cannot_be_left_out_are_refused(family, reason, tiny) -> None:
    plan = Plan("pairs", {"layers.0.attention.qk": torch.tensor([1, 0, 1, 1, 0, 1.0])})
    with pytest.raises(SettingError, match=reason), masked(tiny(family), plan):
        pass


def test_token_masks_keep_their_count_of_values_and_outputs(any_model, tokens) -> None:
    seen = {}
    plan = token_mask(any_model, 5)
    attention = found(any_model)[1].attention
    with masked(any_model, plan):
        attention.o.register_forward_pre_hook(lambda m, x: seen.__setitem__("o", x[0]))
        attention.v.register_forward_hook(lambda m, x, y: seen.__setitem__("v", y))
        logits(any_model, tokens)
    for x in seen.values():
        kept = x.view(*x.shape[:-1], -1, 12) != 0
        assert (kept.sum(-1) == 5).all()
        assert torch.equal(kept, kept[..., :1, :].expand_as(kept))  # one mask for all heads of a token


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layers.9.mlp": torch.ones(4, 96)}, "layers.9.mlp"),
        ({"layers.0.mlp": torch.ones(4, 95)}, "needs"),
        ({"layers.0.mlp": torch.ones(3, 96)}, "router"),
        ({"layers.0.mlp": torch.zeros(4, 96)}, "no channel"),
        ({"layers.0.mlp": torch.full((4, 96), 0.5)}, "0 and 1"),
        ({"layers.0.attention.qk": torch.zeros(6)}, "0 of 6"),
        ({"layers.0.attention.vo": (torch.arange(12) < 3).float()}, "lacks down"),
    ],
)
def test_a_plan_of_another_model_is_refused(change, reason, tiny, random) -> None:
    model = tiny()
    plan = random(model)
    with pytest.raises(SettingError, match=reason), masked(model, Plan("x", plan.keep | change, plan.evidence)):
        pass
