"""From a captured graph to calls with named arguments."""

import pytest
import torch
from torch import nn

from thrifty.errors import ModelError
from thrifty.prune.capture import rule_name, walked
from thrifty.prune.coupling import coupling_of


def test_an_operator_in_place_has_the_rule_of_the_one_that_is_not():
    assert rule_name(torch.ops.aten.relu_.default) == rule_name(torch.ops.aten.relu.default) == "relu"
    assert rule_name(torch.ops.aten.add_.Tensor) == "add"


def test_what_multiplies_is_noted_with_its_module_for_one_example():
    trace = walked(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4)).eval(), (torch.randn(5, 3, 8, 8),)
    )
    assert [(work.kind, work.module, work.scale) for work in trace.works] == [
        ("convolution", "0", 9 * 36),
        ("linear", "2", 1),
    ]


def test_parameters_are_noted_in_the_order_of_the_network():
    model = nn.ModuleDict({"late": nn.Linear(4, 2), "early": nn.Linear(3, 4)})
    model.forward = lambda x: model["late"](model["early"](x))
    makers = [
        name for (name, _), (_, role) in walked(model, (torch.randn(2, 3),)).parameters.items() if role == "makes"
    ]
    assert makers == ["early.weight", "early.bias", "late.weight", "late.bias"]


def test_an_operator_in_place_counts_also_where_nobody_takes_its_result():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.one(x)
            x.sigmoid_()
            return self.two(x)

    coupling = coupling_of(InPlace(), (torch.randn(2, 4),))
    assert coupling.group("one").leaks == "linear at two reads it where it is not zero"


def test_inputs_without_a_tensor_are_refused():
    with pytest.raises(ModelError, match="no tensor with a batch dimension"):
        walked(nn.Identity(), (3,))
