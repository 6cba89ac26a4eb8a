"""Costs are those that PyTorch counts, before and after, and differentiable in between."""

from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO

from thrifty.errors import SettingError
from thrifty.prune.apply import smaller
from thrifty.prune.cost import Cost, budget_of, least, steps_of
from thrifty.prune.coupling import coupling_of
from thrifty.prune.models import resnet8
from thrifty.prune.trial import half

QUICK = [name for name in ZOO if name != "resnet56"]  # resnet8 is the same at less cost
COUNTED = [name for name in QUICK if name not in ("vit", "swin")]  # PyTorch does not count its attention on CPUs


@cache
def captured(name):
    model = ZOO[name].build().eval()
    return model, ZOO[name].inputs, coupling_of(model, ZOO[name].inputs, is_tried=False)


def counted(model, inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() / 2 / len(inputs[0])


def halves(groups):
    generator = torch.Generator().manual_seed(5)
    return {group.name: half(group.size, generator) for group in groups}


@pytest.mark.parametrize("name", COUNTED)
def test_flops_are_those_that_pytorch_counts_before_and_after(name):
    model, inputs, coupling = captured(name)
    cost, keep = Cost.of(coupling), halves(coupling.prunable(residual=True))
    assert float(cost.flops({})) == counted(model, inputs)
    assert float(cost.flops(keep)) == counted(smaller(model, coupling, keep), inputs)


@pytest.mark.parametrize("name", QUICK)
def test_parameters_are_those_of_the_model_before_and_after(name):
    model, _, coupling = captured(name)
    cost, keep = Cost.of(coupling), halves(coupling.prunable(residual=True))
    assert float(cost.parameters({})) == sum(parameter.numel() for parameter in model.parameters())
    small = smaller(model, coupling, keep)
    assert float(cost.parameters(keep)) == sum(parameter.numel() for parameter in small.parameters())


def test_the_fused_attention_costs_what_its_two_products_cost():
    keep = halves(captured("vit")[2].prunable())
    fused, by_hand = (Cost.of(captured(name)[2]).flops for name in ("vit", "vit by hand"))
    assert float(fused({})) == float(by_hand({}))
    assert float(fused(keep)) == float(by_hand(keep))


def test_the_gradient_of_a_gate_is_what_its_part_costs():
    coupling = captured("resnet8")[2]
    cost, group = Cost.of(coupling).flops, coupling.group("blocks.0.conv1")
    keep = torch.ones(group.size, requires_grad=True)
    cost({group.name: keep}).backward()
    without = torch.ones(group.size)
    without[0] = 0
    assert torch.isclose(keep.grad[0].double(), cost({}) - cost({group.name: without}))


def test_widths_are_whole_multiples_of_what_is_asked_and_heads_count_by_their_channels():
    groups = captured("vit")[2].prunable()
    steps = steps_of(groups, 8)
    assert steps == {
        "blocks.0.attention.qkv": 2,
        "blocks.0.wide": 8,
        "blocks.1.attention.qkv": 2,
        "blocks.1.wide": 8,
    }
    kept = least(groups, round_to=8, minimum=3)
    assert {name: int(keep.sum()) for name, keep in kept.items()} == {
        "blocks.0.attention.qkv": 4,
        "blocks.0.wide": 8,
        "blocks.1.attention.qkv": 4,
        "blocks.1.wide": 8,
    }


@pytest.mark.parametrize(
    ("text", "share", "unit"),
    [("flops=45%", 0.45, "FLOPs"), ("45%", 0.45, "FLOPs"), ("0.5", 0.5, "FLOPs"), ("params=50%", 0.5, "parameters")],
)
def test_budgets_are_read_as_shares(text, share, unit):
    budget = budget_of(text, captured("resnet8")[2])
    assert budget.unit == unit
    assert budget.limit == pytest.approx(share * budget.spent({}))


def test_budgets_are_read_as_amounts():
    assert budget_of("params=40k", captured("resnet8")[2]).limit == 40_000


@pytest.mark.parametrize("text", ["flops=0%", "flops=150%", "flops=", "width=30%", "flops=much", ""])
def test_a_budget_that_makes_no_sense_is_refused(text):
    with pytest.raises(SettingError, match="budget"):
        budget_of(text, captured("resnet8")[2])


def test_an_impossible_budget_is_refused_with_the_reachable_minimum_and_residual_streams_lower_it():
    coupling = coupling_of(resnet8(), (torch.randn(2, 3, 32, 32),), is_tried=False)
    with pytest.raises(SettingError, match=r"cannot go below [\d,]+ FLOPs, \d+\.\d% of its 12,501,632"):
        budget_of("flops=5%", coupling)
    assert budget_of("flops=5%", coupling, residual=True).limit == pytest.approx(0.05 * 12_501_632)
