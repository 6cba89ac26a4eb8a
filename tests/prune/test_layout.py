"""One vector of all parts, and the same by name."""

import torch

from thrifty.prune.layout import Layout

LAYOUT = Layout({"a": 2, "b": 3})


def test_flat_and_named_undo_each_other() -> None:
    flat = torch.arange(5.0)
    named = LAYOUT.named(flat)
    assert {name: part.tolist() for name, part in named.items()} == {"a": [0, 1], "b": [2, 3, 4]}
    assert torch.equal(LAYOUT.flat(dict(reversed(named.items()))), flat)


def test_every_part_knows_its_group(made_job) -> None:
    assert LAYOUT.group_of_part(torch.device("cpu")).tolist() == [0, 0, 1, 1, 1]
    assert LAYOUT.num_parts == 5
    layout = Layout.of(made_job.groups)
    assert layout.sizes == {group.name: group.size for group in made_job.groups}
