"""CMoE: shared channels fire most, the others form groups of one size."""

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.moe.job import MoeJob
from thrifty.moe.methods.cmoe import Cmoe, _balanced_groups, _marks


def test_experts_are_the_shared_channels_with_one_group_each(job: MoeJob) -> None:
    for kept in Cmoe(num_experts=8).plan(job).keep.values():
        assert kept.shape == (5, 96)  # three shared slices and one of five routed ones, S3A1E8
        shared = kept.amin(0)
        assert shared.sum() >= 96 * 3 // 8 - 1
        own = (kept - shared).sum(0)
        assert (kept.amax(0) == 1).all()  # no channel is lost
        assert (own[shared == 0] >= 1).all()


def test_marks_are_the_largest_activations_of_unit_inputs_and_weights(job: MoeJob) -> None:
    site = job.sites[0]
    x = torch.randn(6, site.width)
    marked = _marks(site, x, 10)
    assert (marked.sum(-1) == 10).all()
    assert torch.equal(marked, _marks(site, 7 * x, 10))


def test_groups_are_balanced_and_follow_the_marks() -> None:
    kind = torch.arange(30) % 3
    points = torch.eye(3)[kind].repeat_interleave(20, dim=1) + 0.01 * torch.rand(30, 60)
    labels = _balanced_groups(points[torch.arange(30)], 3, 10, 10)
    assert torch.bincount(labels).tolist() == [10, 10, 10]


def test_a_single_expert_is_refused() -> None:
    with pytest.raises(SettingError, match="2 experts"):
        Cmoe(num_experts=1)
