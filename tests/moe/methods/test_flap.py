"""FLAP: the bias stands in for the mean of what is left out, and steady channels go first."""

import torch

from thrifty.moe import calibrate
from thrifty.moe.job import MoeJob
from thrifty.moe.methods.flap import Flap


def test_the_bias_is_the_mean_output_of_the_channels_left_out(job: MoeJob) -> None:
    plan = Flap().plan(job)

    def look(site, x, h) -> None:
        lost = 1 - plan.keep[site.name][0]
        wanted = (h * lost).mean(0) @ site.down.weight.T
        assert torch.allclose(plan.evidence[f"{site.name}.bias"], wanted, atol=1e-4)

    calibrate.visit(job, look)


def test_the_channels_that_fluctuate_stay(job: MoeJob) -> None:
    plan = Flap(across=False).plan(job)

    def look(site, x, h) -> None:
        score = h.var(0) * site.down.weight.norm(dim=0).square()
        kept = plan.keep[site.name][0].bool()
        assert score[kept].min() >= score[~kept].max()

    calibrate.visit(job, look)


def test_without_a_bias_there_is_none(job: MoeJob) -> None:
    assert not Flap(bias=False).plan(job).evidence
