"""Magnitude: the largest columns stay, whatever the data."""

import torch

from thrifty.moe.job import MoeJob
from thrifty.moe.methods.magnitude import Magnitude


def test_the_channels_with_the_largest_columns_stay(job: MoeJob) -> None:
    plan = Magnitude().plan(job)
    for site in job.sites:
        kept = plan.keep[site.name][0].bool()
        norms = site.down.weight.norm(dim=0)
        assert norms[kept].min() >= norms[~kept].max()


def test_across_layers_the_layer_with_larger_columns_keeps_more(job: MoeJob) -> None:
    site = job.sites[2]
    with torch.no_grad():
        site.down.weight.mul_(4)
    try:
        widths = [int(kept.sum()) for kept in Magnitude(across=True).plan(job).keep.values()]
    finally:
        with torch.no_grad():
            site.down.weight.div_(4)
    assert widths[2] > max(widths[:2])
