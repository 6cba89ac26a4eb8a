"""From atoms to groups and lengths."""

import torch
from torch import nn

from thrifty.prune.coupling import coupling_of


def chain():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 2)
    )


def test_a_group_holds_its_makers_then_its_followers_then_its_readers():
    group = coupling_of(chain(), (torch.randn(2, 3, 8, 8),)).groups[0]
    assert [(part.tensor, part.dim, part.role) for part in group.slices] == [
        ("0.weight", 0, "makes"),
        ("0.bias", 0, "makes"),
        ("1.weight", 0, "follows"),
        ("1.bias", 0, "follows"),
        ("1.running_mean", 0, "follows"),
        ("1.running_var", 0, "follows"),
        ("3.weight", 1, "reads"),
    ]
    assert group.slices[0].index.tolist() == [[0], [1], [2], [3], [4], [5]]


def test_lengths_follow_what_is_kept():
    coupling = coupling_of(chain(), (torch.randn(2, 3, 8, 8),))
    rows, columns = coupling.operations[1].extents
    keep = {"0": torch.tensor([1.0, 0, 0, 1, 1, 0]), "3": torch.tensor([1.0, 0, 0, 0])}
    assert (rows.length({}), columns.length({})) == (4, 6)
    assert (rows.length(keep), columns.length(keep)) == (1, 3)
    assert coupling.parameters["5.weight"][1].length(keep) == 16


def test_equal_layers_that_meet_are_one_group_and_unequal_parts_are_two():
    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.out = nn.Linear(4, 6), nn.Linear(4, 4), nn.Linear(6, 2)

        def forward(self, x):
            return self.out(self.one(x) + nn.functional.pad(self.two(x), (0, 2)))

    coupling = coupling_of(Meeting(), (torch.randn(2, 4),))
    assert [(group.name, group.size, bool(group.reason)) for group in coupling.groups[:2]] == [
        ("one", 4, False),
        ("one:2", 2, True),
    ]


def test_what_nothing_reads_says_so():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle, self.one, self.out = nn.Linear(4, 6), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            self.idle(x)
            return self.out(self.one(x))

    coupling = coupling_of(Idle(), (torch.randn(2, 4),))
    assert {group.name: group.reason for group in coupling.frozen}.get("idle", "nothing reads it") == "nothing reads it"
    assert [group.name for group in coupling.prunable()] == ["one"]
