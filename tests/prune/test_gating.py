"""Gates equal the multiplied feature map; masks are lent; zeros stay zero."""

import copy

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from thrifty.prune.coupling import coupling_of
from thrifty.prune.gating import gated, masked, zero
from thrifty.prune.models import resnet8
from thrifty.prune.trial import half, unsettled


@pytest.fixture
def model():
    return unsettled(resnet8(), torch.Generator().manual_seed(1)).eval()


@pytest.fixture
def coupling(model):
    return coupling_of(model, (torch.randn(2, 3, 16, 16),), is_tried=False)


def halves(groups):
    generator = torch.Generator().manual_seed(2)
    return {group.name: half(group.size, generator) for group in groups}


def test_soft_gates_equal_multiplying_the_feature_map(model, coupling):
    group = coupling.group("blocks.1.conv1")
    gate, images = torch.rand(group.size), torch.randn(2, 3, 16, 16)
    found = functional_call(model, gated(model, [group], {group.name: gate}), (images,))
    hook = model.blocks[1].conv2.register_forward_pre_hook(lambda module, given: (given[0] * gate[:, None, None],))
    expected = model(images)
    hook.remove()
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, model(images), atol=1e-3)


def test_gates_of_zero_and_one_are_the_mask(model, coupling):
    groups = coupling.prunable(residual=True)
    keep, images = halves(groups), torch.randn(2, 3, 16, 16)
    found = functional_call(model, gated(model, groups, keep), (images,))
    with masked(model, groups, keep):
        assert torch.allclose(found, model(images), atol=1e-5)


def test_gates_have_gradients_and_leave_the_weights_alone(model, coupling):
    groups = coupling.prunable()
    before = copy.deepcopy(model.state_dict())
    gates = {group.name: torch.full((group.size,), 0.7, requires_grad=True) for group in groups}
    weights = gated(model, groups, gates)
    functional_call(model, weights, (torch.randn(2, 3, 16, 16),)).square().sum().backward()
    assert all(gate.grad is not None and gate.grad.abs().sum() > 0 for gate in gates.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_mask_is_given_back_also_after_an_error(model, coupling):
    groups = coupling.prunable(residual=True)
    before = copy.deepcopy(model.state_dict())

    def fail():
        with masked(model, groups, halves(groups)):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.AdamW(p)])
def test_what_is_zeroed_stays_zero_through_training(model, coupling, make):
    groups, optimizer = coupling.prunable(residual=True), make(list(model.parameters()))
    keep = halves(groups)
    for number in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model.train()(torch.randn(8, 3, 16, 16)), torch.arange(8)).backward()
        optimizer.step()
        if number == 0:
            zero(model, groups, keep, optimizer)
    state = model.state_dict()
    for group in groups:
        for part in group.slices:
            if part.tensor.endswith("running_var"):
                continue
            dropped = part.index[keep[group.name] == 0].flatten()
            assert state[part.tensor].index_select(part.dim, dropped).abs().max() == 0, part
