"""Lengths are linear in what is kept."""

import torch

from thrifty.prune.coupling import Extent, Group
from thrifty.prune.lengths import Lengths, moved


def test_a_length_is_what_stays_and_what_is_kept():
    groups = [Group("one", 3, ()), Group("two", 2, ())]
    repeat = {"one": torch.tensor([1.0, 2.0, 1.0]).double(), "elsewhere": torch.tensor([5.0]).double()}
    lengths = Lengths.of(groups, [Extent(4.0, repeat), Extent(1.0, {})])
    assert lengths({}).tolist() == [13.0, 1.0]
    assert lengths({"one": torch.tensor([0.0, 0.5, 1.0]), "two": torch.zeros(2)}).tolist() == [11.0, 1.0]


def test_without_groups_all_stays():
    assert Lengths.of([], [Extent(4.0, {})])({}).tolist() == [4.0]


def test_constants_are_moved_once():
    constants = (torch.ones(3),)
    assert moved(constants, torch.device("cpu"))[0] is moved(constants, torch.device("cpu"))[0]
