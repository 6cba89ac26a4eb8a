"""Attention with fewer heads computes what PyTorch's own attention computes with those heads at zero."""

import copy

import pytest
import torch
from torch import nn

from thrifty.plan import Plan
from thrifty.prune.apply import smaller
from thrifty.prune.compact import load, save
from thrifty.prune.coupling import coupling_of
from thrifty.prune.gating import masked
from thrifty.prune.heads import FewerHeads


class Alone(nn.Module):
    """One self-attention, its arguments given."""

    def __init__(self, batch_first=True, **given):
        super().__init__()
        self.attention, self.given = nn.MultiheadAttention(16, 4, batch_first=batch_first), given
        nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x):
        return self.attention(x, x, x, **self.given)[0]


LATER = torch.ones(5, 5).triu(1).bool()
PADDING = torch.tensor([[False] * 3 + [True] * 2] * 3)
GIVEN = {
    "plain": {},
    "without weights": {"need_weights": False},
    "tokens first": {"batch_first": False},
    "a mask of truths": {"attn_mask": LATER},
    "a mask to add": {"attn_mask": torch.randn(5, 5), "need_weights": False},
}


@pytest.mark.parametrize("name", GIVEN)
def test_fewer_heads_are_the_masked_attention(name):
    model = Alone(**GIVEN[name]).eval()
    inputs = (torch.randn(3, 5, 16) if model.attention.batch_first else torch.randn(5, 3, 16),)
    coupling = coupling_of(model, inputs)
    group = coupling.group("attention.in_proj_weight")
    keep = {group.name: torch.tensor([0.0, 1, 1, 0])}
    small = smaller(model, coupling, keep)
    assert isinstance(small.attention, FewerHeads)
    assert (small.attention.num_heads, small.attention.in_proj_weight.shape) == (2, (24, 16))
    with masked(model, [group], keep):
        assert torch.allclose(small(*inputs), model(*inputs), atol=1e-5)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", [None, LATER, torch.randn(12, 5, 5)], ids=["no mask", "one mask", "a mask a head"])
def test_padding_is_not_attended(mask, need_weights):
    whole = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x, given = torch.randn(3, 5, 16), {"key_padding_mask": PADDING, "attn_mask": mask, "need_weights": need_weights}
    expected, _ = whole(x, x, x, **given)
    assert torch.allclose(FewerHeads(copy.deepcopy(whole))(x, x, x, **given)[0], expected, atol=1e-5)


def test_weights_are_those_of_the_heads_that_are_left():
    whole = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x, y, mask = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(8, 5, 7)
    mixed, weights = whole(x, y, y, attn_mask=mask, average_attn_weights=False)
    found, others = FewerHeads(copy.deepcopy(whole))(x, y, y, attn_mask=mask, average_attn_weights=False)
    assert torch.allclose(found, mixed, atol=1e-5)
    assert torch.allclose(others, weights, atol=1e-5)
    assert torch.allclose(FewerHeads(copy.deepcopy(whole))(x, y, y, attn_mask=mask)[1], weights.mean(1), atol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_transformer_layer_loses_heads_and_neurons_and_still_trains(norm_first, tmp_path):
    def build():
        return nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=norm_first)

    model, inputs = build().eval(), (torch.randn(2, 6, 16),)
    coupling = coupling_of(model, inputs)
    assert {group.name: group.size for group in coupling.prunable()} == {"self_attn.in_proj_weight": 4, "linear1": 24}
    keep = {"self_attn.in_proj_weight": torch.tensor([1.0, 0, 0, 1]), "linear1": (torch.arange(24) % 2).float()}
    with masked(model, coupling.prunable(), keep), torch.no_grad():
        expected = model(*inputs)
    small = save(tmp_path, model, Plan("mine", keep), coupling)
    assert torch.allclose(small(*inputs), expected, atol=1e-5)
    assert torch.allclose(load(build, tmp_path).eval()(*inputs), expected, atol=1e-5)
    small.train()(*inputs).sum().backward()
    assert small.self_attn.in_proj_weight.grad.shape == (24, 16)


def test_an_attention_that_appends_to_its_keys_keeps_its_heads():
    model = Alone()
    model.attention = nn.MultiheadAttention(16, 4, batch_first=True, add_bias_kv=True)
    assert not FewerHeads.can_replace(model.attention)
