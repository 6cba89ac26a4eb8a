"""Random experts: the core is that of Wanda and in every expert."""

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.moe.job import MoeJob
from thrifty.moe.methods.random import Random
from thrifty.moe.methods.wanda_sp import WandaSp


def test_a_core_is_in_every_expert_and_is_what_wanda_keeps(job: MoeJob) -> None:
    plan = Random(num_experts=4, core=0.5).plan(job)
    wanda = WandaSp().plan(job)
    for name, kept in plan.keep.items():
        common = kept.amin(0)
        assert common.sum() >= 24
        assert (common * wanda.keep[name][0]).sum() >= 24


def test_without_a_core_experts_share_channels_by_chance_only(job: MoeJob) -> None:
    for kept in Random(num_experts=4).plan(job).keep.values():
        assert kept.amin(0).mean() < 0.2


def test_experts_of_two_layers_differ(job: MoeJob) -> None:
    keep = Random(num_experts=4).plan(job).keep
    assert not torch.equal(keep["layers.0.mlp"], keep["layers.1.mlp"])


@pytest.mark.parametrize("changes", [{"num_experts": 0}, {"core": 1.5}])
def test_settings_that_mean_nothing_are_refused(changes) -> None:
    with pytest.raises(SettingError, match="use 1 or more"):
        Random(**changes)
