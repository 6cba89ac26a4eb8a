"""A job: what its share is, and widths that use the budget up in steps of 16."""

from dataclasses import replace

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.moe.job import MoeJob


def test_the_share_of_the_mlps_follows_from_the_scope(job: MoeJob) -> None:
    assert job.share == pytest.approx(0.5)
    blocks = MoeJob.of(job.model, job.corpus, 0.7, "blocks")
    mlp, attention = job.sizes.weights("mlp"), job.sizes.weights("blocks") - job.sizes.weights("mlp")
    assert blocks.share * mlp + attention == pytest.approx(0.7 * (mlp + attention))


@pytest.mark.parametrize("active", [0.2, 0.5, 0.75])
def test_fitted_widths_are_multiples_of_16_that_use_the_budget_up(job: MoeJob, active: float) -> None:
    asked = MoeJob.of(job.model, job.corpus, active)
    wanted = {site.name: 96 * share for site, share in zip(job.sites, (0.9, 0.5, 0.2), strict=True)}
    widths = asked.fitted(wanted)
    assert all(width % 16 == 0 and 16 <= width <= 96 for width in widths.values())
    assert sum(widths.values()) <= active * 288 < sum(widths.values()) + 16 * 3
    assert widths["layers.0.mlp"] >= widths["layers.1.mlp"] >= widths["layers.2.mlp"]


def test_equal_widths_are_equal_whatever_is_wanted(job: MoeJob) -> None:
    asked = replace(job, widths="equal")
    assert asked.fitted({site.name: 5.0 + site.index for site in job.sites}) == dict.fromkeys(
        [site.name for site in job.sites], 48
    )


def test_widths_that_no_layer_can_have_are_refused(job: MoeJob) -> None:
    asked = MoeJob.of(job.model, job.corpus, 0.1)
    with pytest.raises(SettingError, match="experts of 16 channels"):
        asked.fitted({site.name: 10.0 for site in job.sites})


@pytest.mark.parametrize("name", ["steps", "batch", "calibration"])
def test_a_job_of_nothing_is_refused(job: MoeJob, name: str) -> None:
    with pytest.raises(SettingError, match=f"{name}=0"):
        MoeJob.of(job.model, job.corpus, 0.5, **{name: 0})


def test_random_numbers_follow_from_the_seed_and_the_purpose(job: MoeJob) -> None:
    one, two = (torch.rand(4, generator=job.generator(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, torch.rand(4, generator=job.generator(4)))
    assert not torch.equal(one, torch.rand(4, generator=replace(job, seed=1).generator(3)))
