"""The small network is the masked one, now and after a step of training."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from zoo import ZOO

from thrifty.errors import SettingError
from thrifty.plan import Plan
from thrifty.prune.apply import apply, shrink, smaller
from thrifty.prune.cost import Cost
from thrifty.prune.coupling import coupling_of
from thrifty.prune.gating import gated, zero
from thrifty.prune.latency import latency_of
from thrifty.prune.models import resnet8
from thrifty.prune.trial import half, unsettled

OPTIMIZERS = {
    "sgd with momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
}


@pytest.fixture
def model():
    return unsettled(resnet8(), torch.Generator().manual_seed(1))


@pytest.fixture
def coupling(model):
    return coupling_of(model, (torch.randn(2, 3, 16, 16),), is_tried=False)


def halves(coupling, residual=False):
    generator = torch.Generator().manual_seed(2)
    return {group.name: half(group.size, generator) for group in coupling.prunable(residual)}


def step(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8)
    optimizer.zero_grad()
    functional.cross_entropy(model.train()(images), labels).backward()
    optimizer.step()


@pytest.mark.parametrize("residual", [False, True], ids=["inner widths", "residual widths too"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_after_shrinking_is_the_training_that_the_masked_network_would_have(model, coupling, name, residual):
    optimizer, keep = OPTIMIZERS[name](model), halves(coupling, residual)
    groups = coupling.prunable(residual)
    step(model, optimizer, seed=3)
    zero(model, groups, keep, optimizer)
    double = copy.deepcopy(model)
    other = OPTIMIZERS[name](double)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    shrink(model, coupling, keep, optimizer)
    for seed in (4, 5):
        step(model, optimizer, seed)
        step(double, other, seed)
        zero(double, groups, keep, other)
    images = torch.randn(8, 3, 16, 16)
    assert torch.allclose(model.eval()(images), double.eval()(images), atol=1e-5)
    expected = smaller(double, coupling, keep)
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["densenet", "vit", "gated", "resnext", "u-net", "shufflenet v2", "group norm", "shared"]
)
def test_it_is_so_for_other_architectures(name):
    model, inputs = ZOO[name].build(), ZOO[name].inputs
    coupling = coupling_of(model, inputs, is_tried=False)
    optimizer, keep = OPTIMIZERS["sgd with momentum"](model), halves(coupling, residual=True)
    groups = coupling.prunable(residual=True)

    def advance(one, its_optimizer):
        its_optimizer.zero_grad()
        one.train()(*inputs).square().mean().backward()
        its_optimizer.step()

    advance(model, optimizer)
    zero(model, groups, keep, optimizer)
    double = copy.deepcopy(model)
    other = OPTIMIZERS["sgd with momentum"](double)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    shrink(model, coupling, keep, optimizer)
    for _ in range(2):
        advance(model, optimizer)
        advance(double, other)
        zero(double, groups, keep, other)
    expected = smaller(double, coupling, keep).state_dict()
    for key, value in model.state_dict().items():
        assert torch.allclose(value, expected[key], atol=1e-5), key


def test_shrinking_keeps_the_parameters_that_the_optimizer_holds(model, coupling):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [id(parameter) for parameter in model.parameters()]
    shrink(model, coupling, halves(coupling), optimizer)
    assert [id(parameter) for parameter in model.parameters()] == before
    assert [id(parameter) for parameter in optimizer.param_groups[0]["params"]] == before


def test_shrinking_may_happen_while_the_graph_of_the_last_step_lives(model, coupling):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    alive = model.train()(torch.randn(4, 3, 16, 16)).sum()
    alive.backward(retain_graph=True)
    shrink(model, coupling, halves(coupling), optimizer)
    step(model, optimizer, seed=1)
    assert model.blocks[0].conv1.weight.grad.shape[0] == 8


def test_modules_say_the_sizes_that_they_have(model, coupling):
    small = apply(Plan("mine", halves(coupling, residual=True)), model, coupling)
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels)
        if isinstance(module, nn.BatchNorm2d):
            assert len(module.running_mean) == module.num_features
    assert small.stem.out_channels == 8
    assert model.stem.out_channels == 16


def test_channels_last_weights_stay_channels_last(model, coupling):
    small = apply(Plan("mine", halves(coupling)), model.to(memory_format=torch.channels_last), coupling)
    assert small.blocks[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({"nobody": torch.ones(3)}, "no group of that name"),
        ({"blocks.0.conv1": torch.ones(3)}, "a group of 16 parts"),
        ({"blocks.0.conv1": torch.zeros(16)}, "keep at least one"),
        ({"classifier": torch.eye(10)[0]}, "it is an output of the model"),
    ],
)
def test_a_plan_that_cannot_be_applied_is_refused(model, coupling, keep, says):
    with pytest.raises(SettingError, match=says):
        apply(Plan("mine", keep), model, coupling)


@pytest.mark.gpu
def test_on_a_gpu_all_is_as_on_a_cpu(model, coupling):
    keep, groups = halves(coupling, residual=True), coupling.prunable(residual=True)
    images = torch.randn(4, 3, 16, 16)
    expected = smaller(model.eval(), coupling, keep)(images)
    double = copy.deepcopy(model).to("cuda", memory_format=torch.channels_last)
    gates = {name: kept.cuda().requires_grad_() for name, kept in keep.items()}
    found = functional_call(double, gated(double, groups, gates), (images.cuda(),))
    assert torch.allclose(found.cpu(), expected, atol=1e-3)
    found.sum().backward()
    assert all(gate.grad.isfinite().all() for gate in gates.values())
    cost = Cost.of(coupling)
    assert float(cost.flops(gates)) == float(cost.flops(keep))
    assert float(latency_of(double, coupling, 8, torch.device("cuda"))(gates)) > 0
    optimizer = torch.optim.SGD(double.parameters(), lr=0.1, momentum=0.9)
    zero(double, groups, keep, optimizer)
    shrink(double, coupling, keep, optimizer)
    assert torch.allclose(double(images.cuda()).cpu(), expected, atol=1e-3)
