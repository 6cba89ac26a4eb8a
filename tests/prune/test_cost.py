"""Costs are those that PyTorch counts, before and after, and differentiable in between."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO

from thrifty.errors import SettingError
from thrifty.prune.apply import smaller
from thrifty.prune.cost import Cost, budget_of, least, steps_of, taken_by_rounding
from thrifty.prune.coupling import coupling_of
from thrifty.prune.job import best
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


class WrittenElements(TorchDispatchMode):
    """Counts the elements that operators write: the first output of each that is no view, given some that are not all
    weights."""

    def __init__(self, model):
        super().__init__()
        self.weights, self.count = {one.data_ptr() for one in model.parameters()}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        alias = function._schema.returns[0].alias_info
        given = [one.data_ptr() for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if (alias is None or alias.is_write) and not set(given) <= self.weights:
            self.count += (result if isinstance(result, torch.Tensor) else result[0]).numel()
        return result


def halves(groups):
    generator = torch.Generator().manual_seed(5)
    return {group.name: half(group.size, generator) for group in groups}


class Odd(nn.Module):
    """Products whose operands no rule follows: a computed weight, groups transposed, another's weight, a sum."""

    def __init__(self):
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
        self.second, self.third = nn.Conv2d(8, 12, 1), nn.ConvTranspose2d(12, 12, 3, groups=3)
        self.wide, self.last = nn.Linear(12, 7), nn.Linear(12, 5)
        self.hidden = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3))

    def forward(self, x):
        x = self.third(self.second(self.first(x)).relu()).mean((-1, -2))
        x = nn.functional.linear(self.wide(x), self.wide.weight.t())
        return self.hidden(torch.addmm(x[:, :5], x, self.last.weight.t()))


@pytest.mark.parametrize("text", ["flops=50%,", ",flops=50%", "flops=50%,,params=60%"])
def test_a_comma_too_many_is_told(text):
    with pytest.raises(SettingError, match="comma"):
        budget_of(text, captured("resnet8")[2])


def test_products_that_no_rule_follows_are_counted_whole():
    model, inputs = Odd().eval(), (torch.randn(2, 3, 8, 8),)
    coupling = coupling_of(model, inputs, is_tried=False)
    assert float(Cost.of(coupling).flops({})) == counted(model, inputs)


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


@pytest.mark.parametrize("name", ["resnet8", "resnet50", "vgg", "mobilenet v2", "densenet"])
def test_activations_are_the_elements_that_operators_write_before_and_after(name):
    model, inputs, coupling = captured(name)
    cost, keep = Cost.of(coupling).activations, halves(coupling.prunable(residual=True))
    for network, kept in ((model, {}), (smaller(model, coupling, keep), keep)):
        with WrittenElements(network) as written, torch.no_grad():
            network(*inputs)
        assert float(cost(kept)) == written.count / len(inputs[0])


@pytest.mark.parametrize("name", QUICK)
def test_activations_are_those_of_the_small_network_when_it_is_captured_anew(name):
    model, inputs, coupling = captured(name)
    keep = halves(coupling.prunable(residual=True))
    small = coupling_of(smaller(model, coupling, keep), inputs, is_tried=False)
    assert float(Cost.of(coupling).activations(keep)) == pytest.approx(float(Cost.of(small).activations({})))


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
    [
        ("flops=45%", 0.45, "FLOPs"),
        ("45%", 0.45, "FLOPs"),
        ("0.5", 0.5, "FLOPs"),
        ("params=50%", 0.5, "parameters"),
        ("activations=80%", 0.8, "activations"),
    ],
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


def test_several_limits_are_all_met_and_the_tightest_is_what_is_spent():
    coupling = captured("resnet8")[2]
    budget = budget_of("flops=50%, activations=80%,params=90%", coupling)
    assert [one.unit for one in budget.each] == ["FLOPs", "activations", "parameters"]
    groups = coupling.prunable()
    found = best({group.name: torch.rand(group.size) for group in groups}, budget, groups)
    assert all(one.fits(found) for one in budget.each)
    shares = [one.spent(found) / one.limit for one in budget.each]
    assert budget.spent(found) == pytest.approx(max(shares)) == pytest.approx(1, abs=0.02)
    keep = {name: kept.requires_grad_() for name, kept in found.items()}
    tightest = budget.each[shares.index(max(shares))]
    pairs = zip(*(torch.autograd.grad(one.cost(keep), list(keep.values())) for one in (budget, tightest)), strict=True)
    assert all(torch.allclose(whole * tightest.limit, one) for whole, one in pairs)


def test_limits_that_no_network_meets_together_are_refused_with_the_least_of_each():
    coupling = captured("resnet8")[2]
    with pytest.raises(SettingError, match=r"cannot go below [\d,.]+ FLOPs, .*% of its .* and [\d,.]+ activations, "):
        budget_of("flops=50%,activations=3%", coupling)
    with pytest.raises(SettingError, match="flops has two limits"):
        budget_of("50%,flops=40%", coupling)


def test_an_impossible_budget_is_refused_with_the_reachable_minimum_and_residual_streams_lower_it():
    coupling = coupling_of(resnet8(), (torch.randn(2, 3, 32, 32),), is_tried=False)
    with pytest.raises(SettingError, match=r"cannot go below [\d,]+ FLOPs, \d+\.\d% of its 12,501,632"):
        budget_of("flops=5%", coupling)
    assert budget_of("flops=5%", coupling, residual=True).limit == pytest.approx(0.05 * 12_501_632)


def test_what_coarse_steps_take_of_a_budget_is_told():
    coupling = captured("resnet8")[2]
    groups = coupling.prunable()
    shares = [taken_by_rounding(budget_of("60%", coupling, round_to=step), groups, step) for step in (1, 4, 8)]
    assert shares[0] == 0
    assert 0 < shares[1] < shares[2]
    assert shares[2] > 0.4  # 8 of the 16 channels of its first stage are half of what that costs
    tighter = taken_by_rounding(budget_of("params=30%,flops=60%", coupling, round_to=4), groups, 4)
    assert tighter >= shares[1]
