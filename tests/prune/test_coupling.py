"""The laws of groups, on every model of the zoo: what is found can go, and the small network is the masked one."""

import time
from functools import cache

import pytest
import torch
from torch import nn
from torch.func import functional_call
from zoo import ZOO, Vit

from thrifty.errors import ModelError
from thrifty.prune.apply import smaller
from thrifty.prune.coupling import coupling_of
from thrifty.prune.gating import gated, masked
from thrifty.prune.models import resnet8, resnet56
from thrifty.prune.trial import half, unsettled


@cache
def captured(name):
    """A model of the zoo with random statistics, its inputs and its groups."""
    torch.manual_seed(0)
    model = unsettled(ZOO[name].build(), torch.Generator().manual_seed(1)).eval()
    inputs = ZOO[name].inputs
    return model, inputs, coupling_of(model, inputs)


def outputs(model, inputs, weights=None):
    found = functional_call(model, weights or {}, inputs)
    return torch.cat([part.flatten() for part in (found.values() if isinstance(found, dict) else [found])])


def random_keep(groups, seed):
    generator = torch.Generator().manual_seed(seed)
    return {group.name: half(group.size, generator) for group in groups}


@pytest.mark.parametrize("name", ZOO)
def test_at_least_the_groups_that_are_there_are_found(name):
    _, _, coupling = captured(name)
    assert len(coupling.prunable()) >= ZOO[name].inner, [(g.name, g.reason) for g in coupling.groups]
    assert len(coupling.prunable(residual=True)) >= ZOO[name].all


@pytest.mark.parametrize("name", ZOO)
def test_the_small_network_equals_the_masked_one(name):
    model, inputs, coupling = captured(name)
    groups = coupling.prunable(residual=True)
    for seed in range(2):
        keep = random_keep(groups, seed)
        with masked(model, groups, keep), torch.no_grad():
            expected = outputs(model, inputs)
        with torch.no_grad():
            assert torch.allclose(outputs(smaller(model, coupling, keep), inputs), expected, atol=1e-5)
            assert not torch.allclose(outputs(model, inputs), expected, atol=1e-5), "nothing was dropped"


@pytest.mark.parametrize("name", ZOO)
def test_gates_of_zero_and_one_equal_the_mask(name):
    model, inputs, coupling = captured(name)
    groups = coupling.prunable(residual=True)
    keep = random_keep(groups, 3)
    with torch.no_grad():
        found = outputs(model, inputs, gated(model, groups, keep))
        with masked(model, groups, keep):
            assert torch.allclose(found, outputs(model, inputs), atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_zero_makers_and_followers_are_enough_unless_the_group_says_that_it_leaks(name):
    model, inputs, coupling = captured(name)
    for group in coupling.prunable(residual=True):
        keep = random_keep([group], 4)
        state, dropped = model.state_dict(), keep[group.name] == 0
        silent = {
            part.tensor: state[part.tensor].index_fill(part.dim, part.index[dropped].flatten(), 0)
            for part in group.slices
            if part.role != "reads"
        }
        with torch.no_grad():
            found = outputs(model, inputs, silent)
            with masked(model, [group], keep):
                is_same = torch.allclose(found, outputs(model, inputs), atol=1e-5)
        assert is_same != bool(group.leaks), (group.name, group.leaks)


@pytest.mark.parametrize("name", ZOO)
def test_every_slice_is_in_its_tensor_and_parts_never_overlap(name):
    model, _, coupling = captured(name)
    seen = set()
    for group in coupling.groups:
        for part in group.slices:
            assert part.index.shape[0] == group.size
            assert int(part.index.max()) < model.state_dict()[part.tensor].shape[part.dim]
            owned = {(part.tensor, part.dim, position) for position in part.index.flatten().tolist()}
            assert len(owned) == part.index.numel()
            assert not owned & seen
            seen |= owned


@pytest.mark.parametrize("name", ZOO)
def test_groups_are_found_the_same_every_time(name):
    model, inputs, coupling = captured(name)
    again = coupling_of(model, inputs, is_tried=False)
    assert [(g.name, g.size, g.is_residual) for g in again.groups] == [
        (g.name, g.size, g.is_residual) for g in coupling.groups
    ]


@pytest.mark.parametrize(
    ("name", "group", "says"),
    [
        ("custom operator", "second.0", "no rule for thrifty_tests::swirl at the top of the model"),
        ("convnext", "0", "layer_norm at 1.norm normalises over them"),
        ("group norm", "two", "group_norm at norm2 normalises over them"),
        ("resnet8", "classifier", "it is an output of the model"),
        ("two heads", "box.linear", "it is an output of the model"),
        ("resnet20 with padding", "blocks.3.conv2", "add at blocks.3 joins it to what cannot go"),
    ],
)
def test_what_cannot_go_says_why_and_where(name, group, says):
    assert says in captured(name)[2].group(group).reason


def test_whole_heads_go_from_queries_keys_values_and_the_output_together():
    group = captured("vit")[2].group("blocks.0.attention.qkv")
    assert group.size == 4
    assert {(part.tensor.rsplit(".", 2)[1], part.role): part.index.shape[1] for part in group.slices} == {
        ("qkv", "makes"): 12,
        ("out", "reads"): 4,
    }


def test_residual_streams_are_searched_only_when_asked_for():
    coupling = captured("resnet8")[2]
    assert [group.name for group in coupling.prunable(residual=True) if group.is_residual] == [
        "stem",
        "blocks.1.conv2",
        "blocks.2.conv2",
    ]


class Stubborn(nn.Module):
    """Reads a size from a constant of its own, so its first layer cannot be made smaller."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = torch.relu(self.first(x)).reshape(-1, 8)
        return self.third(torch.relu(self.second(x)))


def test_a_group_whose_small_network_does_not_run_is_frozen_and_the_others_stay():
    coupling = coupling_of(Stubborn(), (torch.randn(4, 6),))
    assert [group.name for group in coupling.prunable()] == ["second"]
    assert "the smaller network does not run" in coupling.group("first").reason


class Twins(nn.Module):
    """Two groups of one size, and one attribute that its code takes for the size of both."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.third, self.last = (nn.Linear(*sizes) for sizes in ((6, 8), (6, 8), (8, 5), (5, 3)))
        self.other, self.width = nn.Linear(8, 5), 8

    def forward(self, x):
        one, two = (made.view(len(x), self.width, 1).flatten(1) for made in (self.one(x), self.two(x)))
        return self.last(self.third(one) * self.other(two))


def test_a_size_that_two_groups_share_in_the_code_of_the_model_holds_them_back():
    inputs = (torch.randn(4, 6),)
    offered = coupling_of(Twins(), inputs, is_tried=False).prunable()
    assert {group.name for group in offered} >= {"one", "two"}
    assert not {group.name for group in coupling_of(Twins(), inputs).prunable()} & {"one", "two"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_network_that_cannot_be_copied_is_refused_in_one_line():
    model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    model(torch.randn(2, 4))
    with pytest.raises(ModelError, match=r"cannot be copied.*parametriz"):
        coupling_of(model, (torch.randn(2, 4),))


def test_a_model_that_cannot_be_captured_is_refused_in_one_line():
    class Branching(nn.Linear):
        def forward(self, input):
            return super().forward(input) if input.sum() > 0 else input

    with pytest.raises(
        ModelError, match=r"^Branching cannot be captured by torch\.export: .*; its forward must"
    ) as error:
        coupling_of(Branching(4, 4), (torch.randn(2, 4),))
    assert "\n" not in str(error.value)


def test_a_model_with_nothing_to_drop_is_refused_with_the_reasons():
    with pytest.raises(ModelError, match="nothing of Linear can go: it is an output of the model"):
        coupling_of(nn.Linear(4, 4), (torch.randn(2, 4),))


def test_the_model_itself_is_left_as_it_was():
    model = resnet8().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    coupling_of(model, (torch.randn(2, 3, 16, 16),))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_heads_written_as_products_are_those_of_the_fused_kernel():
    coupling = coupling_of(Vit(fused=False), ZOO["vit"].inputs, is_tried=False)
    assert [(g.name, g.size) for g in coupling.groups] == [(g.name, g.size) for g in captured("vit")[2].groups]


def test_it_prints_one_line_a_group():
    lines = str(captured("resnet8")[2]).splitlines()
    assert [" ".join(line.split()) for line in (lines[0], lines[1], lines[-1])] == [
        "stem 16 can go (residual stream)",
        "blocks.0.conv1 16 can go",
        "classifier 10 stays: it is an output of the model",
    ]


@pytest.mark.slow
def test_resnet56_is_analysed_within_five_seconds():
    start = time.process_time()
    coupling = coupling_of(resnet56(), (torch.randn(2, 3, 32, 32),))
    assert time.process_time() - start < 5
    assert len(coupling.prunable()) == 27
