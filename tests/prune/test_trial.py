"""The trial finds groups that are wrong."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from thrifty.prune.coupling import coupling_of
from thrifty.prune.models import resnet8
from thrifty.prune.trial import half, trouble, unsettled


@pytest.fixture
def model():
    return resnet8().eval()


@pytest.fixture
def coupling(model):
    return coupling_of(model, (torch.randn(2, 3, 16, 16),), is_tried=False)


def test_right_groups_are_no_trouble_and_the_model_stays(model, coupling):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert trouble(model, coupling, coupling.prunable(residual=True)) == ""
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_group_that_forgets_its_reader_does_not_run(model, coupling):
    group = coupling.group("blocks.0.conv1")
    wrong = replace(group, slices=tuple(part for part in group.slices if part.role != "reads"))
    found = trouble(model, replace(coupling, groups=(wrong,)), (wrong,))
    assert found.startswith("the smaller network does not run: ")


def test_a_group_that_reads_other_positions_is_not_equal(model, coupling):
    group = coupling.group("blocks.0.conv1")
    slices = [
        replace(part, index=part.index.roll(1, 0)) if part.tensor == "blocks.0.norm1.bias" else part
        for part in group.slices
    ]
    wrong = replace(group, slices=tuple(slices))
    found = trouble(model, replace(coupling, groups=(wrong,)), (wrong,))
    assert found == "the smaller network does not equal the masked one"


def test_half_keeps_and_drops_at_least_one():
    for size in range(2, 9):
        assert half(size, torch.Generator().manual_seed(0)).sum() == size // 2


class Scaled(nn.Module):
    """Its first layer hides behind a scale of one millionth, and its code hides what is wrong with it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 4)
        self.third, self.fourth = nn.Linear(4, 8), nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.full((4,), 1e-6))

    def forward(self, x):
        inner = torch.relu(self.first(x))
        inner = inner if inner.shape[1] == 6 else inner + 1
        return self.fourth(torch.relu(self.third(x + self.scale * self.second(inner))))


def test_a_difference_behind_a_tiny_scale_is_seen():
    coupling = coupling_of(Scaled(), (torch.randn(3, 4),))
    assert coupling.group("first").reason == "the smaller network does not equal the masked one"
    assert coupling.group("third").reason == ""


def test_outputs_without_tensors_are_no_proof(model, coupling):
    model.forward = lambda x: "nothing"
    assert trouble(model, coupling, coupling.prunable()) == "its output holds no tensors to compare"


def test_unsettled_batch_norms_are_not_what_they_were():
    norm = unsettled(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), torch.Generator().manual_seed(0))[0]
    assert norm.running_mean.abs().min() > 0
    assert (norm.running_var != 1).all()
