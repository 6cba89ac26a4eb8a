"""One ranking of all channels, in which every layer keeps a little."""

import torch
from conftest import fresh

from thrifty.prune.job import PruneJob
from thrifty.prune.methods.global_magnitude import GlobalMagnitude


def test_a_layer_of_large_weights_is_kept_and_the_others_pay(made_job: PruneJob) -> None:
    job = fresh(made_job)
    first, *others = job.groups
    with torch.no_grad():
        job.model.get_submodule(first.name).weight.mul_(30)
    plan = GlobalMagnitude(least=0.25).plan(job)
    assert plan.keep[first.name].mean() > max(float(plan.keep[other.name].mean()) for other in others)
    assert all(plan.keep[other.name].sum() >= 0.25 * other.size for other in others)


def test_the_largest_channels_of_a_layer_are_beyond_all_others() -> None:
    scores = GlobalMagnitude(least=0.5)._scores(torch.tensor([0.1, 0.4, 0.3, 0.2]))
    assert scores.argsort(descending=True)[:2].sort().values.tolist() == [1, 2]
    assert (scores > 1).sum() == 2
