"""Rules of layers and element-wise functions, one small network each: what they tie, what they hold back."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from thrifty.prune.coupling import coupling_of
from thrifty.prune.rules import RULES, prunes_whole_blocks


class Net(nn.Module):
    """Two convolutions with something in between, and a head."""

    def __init__(self, between, width=8, read=8):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(read, 6, 3)
        self.head, self.between = nn.Linear(6, 4), between

    def forward(self, x):
        return self.head(self.second(self.between(self.first(x))).mean((2, 3)))


def first_of(between, width=8, read=8):
    """The group of the first convolution, tried out."""
    return coupling_of(Net(between, width, read), (torch.randn(2, 3, 8, 8),)).group("first")


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.held = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.held)


KEEP_ZERO = [nn.ReLU(), nn.ReLU6(True), nn.GELU(), nn.SiLU(True), nn.Hardswish(), nn.Tanh(), nn.LeakyReLU(), nn.ELU(),
             nn.Mish(), nn.PReLU(), nn.PReLU(8), nn.Hardtanh(), nn.Dropout(), nn.Identity(), nn.BatchNorm2d(8),
             nn.BatchNorm2d(8, affine=False), nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1), nn.Upsample(scale_factor=2),
             nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(8, 8),
             nn.Softsign()]  # fmt: skip


@pytest.mark.parametrize("layer", KEEP_ZERO, ids=str)
def test_a_layer_that_keeps_zero_lets_every_channel_go(layer):
    group = first_of(layer)
    assert (group.size, group.reason, group.leaks) == (8, "", "")


LOSE_ZERO = [nn.Sigmoid(), nn.Hardsigmoid(), nn.Softplus(), nn.ConstantPad2d(1, 2.0), nn.Hardtanh(1.0, 2.0),
             Of(torch.exp), Of(lambda x: x + 1), Of(lambda x: x.cos())]  # fmt: skip


@pytest.mark.parametrize("layer", LOSE_ZERO, ids=str)
def test_a_layer_that_loses_zero_lets_channels_go_and_says_that_they_leak(layer):
    group = first_of(layer)
    assert (group.size, group.reason) == (8, "")
    assert group.leaks == "conv2d at second reads it where it is not zero"


@pytest.mark.parametrize(
    "layer",
    [
        Of(lambda x: x * x.sigmoid()),
        Of(lambda x: x * (x + 3).clamp(0, 6) / 6),
        Of(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True))),
        Of(lambda x: x.pow(2).sqrt() * 3.0),
    ],
)
def test_zero_times_anything_is_zero(layer):
    assert first_of(layer).leaks == ""


HOLD_BACK = {
    "layer_norm": nn.LayerNorm([8, 8, 8]),
    "group_norm": nn.GroupNorm(1, 8),
    "mean": Of(lambda x: x - x.mean(1, keepdim=True)),
    "softmax": nn.Softmax(1),
    "index_select": Of(lambda x: x.index_select(1, torch.arange(8).flip(0))),
    "cumsum": Of(lambda x: x.cumsum(1)),
    "flip": Of(lambda x: x.flip(1)),
    "slice": Of(lambda x: torch.cat([x[:, 2:], x[:, :2]], 1)),
}


@pytest.mark.parametrize("name", HOLD_BACK)
def test_what_mixes_channels_holds_them_back_by_its_name(name):
    group = Net(HOLD_BACK[name])
    found = coupling_of(nn.Sequential(group, nn.ReLU(), nn.Linear(4, 6), nn.Linear(6, 2)), (torch.randn(2, 3, 8, 8),))
    assert f"{name} at 0.between" in found.group("0.first").reason


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), 8),
        (nn.Conv2d(8, 16, 3, groups=8), 8),
        (nn.Conv2d(8, 8, 3, groups=4), 4),
        (nn.Conv2d(8, 8, 3, groups=2), 4),
        (nn.GroupNorm(4, 8), 4),
        (nn.Conv2d(8, 8, 3), 8),
        (nn.ConvTranspose2d(8, 8, 3), 8),
    ],
    ids=str,
)
def test_grouped_layers_lose_whole_groups_or_the_same_channels_of_each(layer, size):
    read = getattr(layer, "out_channels", 8)
    assert first_of(layer, read=read).size == size


def test_grouped_convolutions_lose_groups_where_there_are_at_least_as_many_as_channels_in_each():
    assert [prunes_whole_blocks(*sizes) for sizes in ((1, 8), (2, 8), (4, 8), (8, 8))] == [False, False, True, True]


def test_a_grouped_transposed_convolution_has_no_rule():
    assert "no rule for conv_transpose2d at 0.between" in coupling_of(
        nn.Sequential(Net(nn.ConvTranspose2d(8, 8, 3, groups=2)), nn.Linear(4, 6), nn.Linear(6, 2)),
        (torch.randn(2, 3, 8, 8),),
    ).group("0.first").reason  # fmt: skip


def test_both_halves_of_a_gated_unit_lose_the_same_channels():
    group = first_of(nn.GLU(1), read=4)
    assert (group.size, group.slices[0].index.tolist()) == (4, [[0, 4], [1, 5], [2, 6], [3, 7]])


def test_tensors_like_another_have_its_channels_and_others_hold_back_what_meets_them():
    assert first_of(Of(lambda x: x + torch.zeros_like(x))).leaks == ""
    assert first_of(Of(lambda x: x + torch.ones_like(x))).leaks
    assert "add at between joins it to what cannot go" in first_of(Of(lambda x: x + x.new_ones(8, 1, 1))).reason


def test_a_form_of_an_operator_that_its_rule_does_not_foresee_counts_as_unknown(monkeypatch):
    monkeypatch.setitem(RULES, "relu", lambda trace, call: call["nothing of this name"])
    assert first_of(nn.ReLU()).reason == "thrifty has no rule for relu at between"


def test_a_computed_weight_holds_its_layer_back_and_leaves_the_others():
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 2, 1)
    )
    coupling = coupling_of(model, (torch.randn(2, 3, 8, 8),))
    assert [group.name for group in coupling.prunable()] == ["1"]


class Heads(nn.Module):
    """Attention by einsum, with a mask for each head."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.bias, self.num_heads = nn.Parameter(torch.randn(4, 5, 5)), 4

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, 4)) for layer in (self.q, self.k, self.v))
        weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) + self.bias).softmax(-1)
        return self.out(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))


def test_heads_go_also_through_einsum_and_take_their_biases_along():
    group = coupling_of(Heads(), (torch.randn(2, 5, 16),)).group("q")
    assert group.size == 4
    assert {(part.tensor, part.dim) for part in group.slices} >= {("bias", 0), ("k.weight", 0), ("out.weight", 1)}


class Words(nn.Module):
    """An embedding whose width can go."""

    def __init__(self):
        super().__init__()
        self.table, self.wide, self.out = nn.Embedding(10, 8), nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.out(functional.relu(self.wide(self.table(x).mean(1))))


def test_the_width_of_an_embedding_can_go():
    coupling = coupling_of(Words(), (torch.randint(0, 10, (2, 5)),))
    assert [(group.name, group.size) for group in coupling.prunable()] == [("table", 8), ("wide", 12)]


def test_a_recurrent_layer_holds_back_what_it_reads():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.recurrent = nn.Linear(4, 8), nn.GRU(8, 6, batch_first=True)
            self.wide, self.out = nn.Linear(6, 12), nn.Linear(12, 2)

        def forward(self, x):
            return self.out(self.wide(self.recurrent(self.first(x))[0][:, -1]))

    coupling = coupling_of(Recurrent(), (torch.randn(2, 5, 4),))
    assert [group.name for group in coupling.prunable()] == ["wide"]
    assert "no rule for gru at recurrent" in coupling.group("first").reason
