"""Wanda-sp: weights times activations, both of them."""

import torch

from thrifty.moe import calibrate
from thrifty.moe.job import MoeJob
from thrifty.moe.methods.magnitude import Magnitude
from thrifty.moe.methods.wanda_sp import WandaSp


def test_the_score_is_the_mean_weight_times_the_norm_of_the_activation(job: MoeJob) -> None:
    plan = WandaSp().plan(job)

    def look(site, x, h) -> None:
        score = (site.down.weight.abs() * h.norm(dim=0)).mean(0)
        kept = plan.keep[site.name][0].bool()
        assert score[kept].min() >= score[~kept].max()

    calibrate.visit(job, look)


def test_it_looks_at_the_data(job: MoeJob) -> None:
    wanda, magnitude = WandaSp().plan(job), Magnitude().plan(job)
    assert any(not torch.equal(kept, magnitude.keep[name]) for name, kept in wanda.keep.items())
