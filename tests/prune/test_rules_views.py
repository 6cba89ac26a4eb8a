"""Rules of views: the atoms move as the values do."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from thrifty.prune.coupling import coupling_of
from thrifty.prune.rules_views import reshape_atoms


@given(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4), st.data())
def test_atoms_are_reshaped_as_the_value_is(before, data):
    size = int(np.prod(before))
    after, rest = [], size
    while rest > 1:
        factor = data.draw(st.sampled_from([n for n in range(1, rest + 1) if rest % n == 0]))
        after.append(factor)
        rest //= factor
    axis = data.draw(st.integers(0, len(before) - 1))
    form = [1] * len(before)
    form[axis] = before[axis]
    atoms = np.arange(before[axis]).reshape(form)
    found, _ = reshape_atoms(atoms, before, after)
    assert np.array_equal(np.broadcast_to(found, after), np.broadcast_to(atoms, before).reshape(after))


class Net(nn.Module):
    """Two makers, a function of what they make, a reader and a head."""

    def __init__(self, function, read):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.reader, self.head, self.function = nn.LazyConv2d(6, 1), nn.Linear(6, 4), function
        self.forward(torch.randn(2, 3, 4, 4))
        assert self.reader.in_channels == read

    def forward(self, x):
        return self.head(self.reader(self.function(self.one(x), self.two(x))).mean((2, 3)))


def sizes(function, read):
    """For each group that can go its size, tried out."""
    coupling = coupling_of(Net(function, read), (torch.randn(2, 3, 4, 4),))
    return {group.name: group.size for group in coupling.prunable(residual=True) if group.name != "reader"}


@pytest.mark.parametrize(
    ("function", "read", "expected"),
    [
        (lambda x, y: torch.cat([x, y], 1), 16, {"one": 8, "two": 8}),
        (lambda x, y: torch.cat([x, y], 2), 8, {"one": 8}),
        (lambda x, y: torch.stack([x, y]).sum(0), 8, {"one": 8}),
        (lambda x, y: x + y, 8, {"one": 8}),
        (lambda x, y: x * y, 8, {"one": 8}),
        (lambda x, y: torch.maximum(x, y), 8, {"one": 8}),
        (lambda x, y: x.permute(0, 2, 3, 1).transpose(1, 3).transpose(2, 3) + y, 8, {"one": 8}),
        (lambda x, y: x.flatten(1).unflatten(1, (-1, 4, 4)), 8, {"one": 8}),
        (lambda x, y: functional.pixel_shuffle(x, 2), 2, {"one": 2}),
        (lambda x, y: x.chunk(2, 1)[0] + y.chunk(2, 1)[1], 4, {"one": 4}),
        (lambda x, y: torch.cat(x.chunk(2, 1)[::-1], 1), 8, {"one": 4}),
        (lambda x, y: torch.cat([x, x], 1), 16, {"one": 8}),
        (lambda x, y: x[:, :, ::2, 1:], 8, {"one": 8}),
        (lambda x, y: x.mean(2, keepdim=True).expand(-1, -1, 4, -1), 8, {"one": 8}),
        (lambda x, y: x.amax((2, 3))[:, :, None, None], 8, {"one": 8}),
        (lambda x, y: functional.pad(x, (0, 0, 0, 0, 2, 1)), 11, {"one": 8}),
        (lambda x, y: x.squeeze(0).unsqueeze(-1).squeeze(-1), 8, {"one": 8}),
        (lambda x, y: x.split([3, 5], 1)[1], 5, {}),
        (lambda x, y: x[:, 2:], 6, {}),
        (lambda x, y: x.flip(1), 8, {}),
        (lambda x, y: torch.cat([x, y.new_ones(2, 8, 4, 4)], 2), 8, {}),
    ],
)
def test_a_view_ties_what_it_must_and_frees_the_rest(function, read, expected):
    assert sizes(function, read) == expected


def test_a_shuffle_of_channels_ties_one_of_each_half():
    def shuffle(x, y):
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).flatten(1, 2)

    assert sizes(shuffle, 8) == {"one": 4}


def test_a_flattened_map_is_read_with_all_of_its_pixels():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 1), nn.Linear(8 * 16, 4)

        def forward(self, x):
            return self.two(self.one(x).flatten(1))

    group = coupling_of(Flat(), (torch.randn(2, 3, 4, 4),)).group("one")
    read = next(part for part in group.slices if part.role == "reads")
    assert read.index.tolist() == torch.arange(128).view(8, 16).tolist()
