"""The smallest parts of a group are pulled hardest, then cut."""

import pytest
import torch
from conftest import fresh

from thrifty.errors import SettingError
from thrifty.prune.job import PruneJob
from thrifty.prune.methods.group_norm import GroupNorm, _smallness
from thrifty.prune.project import Projection
from thrifty.prune.run import Run


def test_smallness_is_0_for_the_largest_and_1_for_the_smallest_of_each_group() -> None:
    norms, group = torch.tensor([1.0, 3.0, 2.0, 10.0, 20.0]), torch.tensor([0, 0, 0, 1, 1])
    assert _smallness(norms, group).tolist() == pytest.approx([1, 0, 0.5, 1, 0])


def test_the_regulariser_parts_small_from_large(made_job: PruneJob, monkeypatch) -> None:
    spread, cut = {}, Run.cut

    def measured(run: Run, keep):
        norms = Projection(run.model, run.job.groups).norms()
        spread[run.method] = float(norms.max() / norms.min())
        cut(run, keep)

    monkeypatch.setattr(Run, "cut", measured)
    weak, strong = GroupNorm(strength=0.0), GroupNorm(strength=0.1)
    for method in (weak, strong):
        method.plan(fresh(made_job))
    assert spread[strong] > 1.05 * spread[weak]


def test_an_order_that_is_none_is_refused() -> None:
    with pytest.raises(SettingError, match="dense <= sparse"):
        GroupNorm(dense=0.8, sparse=0.5)
