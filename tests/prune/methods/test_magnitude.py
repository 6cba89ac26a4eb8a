"""The channels with the largest weights stay, the same share of every layer."""

import pytest
import torch
from conftest import fresh

from thrifty.prune.job import PruneJob
from thrifty.prune.methods.magnitude import Magnitude


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_channels_with_large_weights_stay(made_job: PruneJob, power: float) -> None:
    job = fresh(made_job)
    large = {group.name: torch.arange(group.size) % 4 == 1 for group in job.groups}
    for name, chosen in large.items():
        with torch.no_grad():
            job.model.get_submodule(name).weight[chosen] *= 20
    plan = Magnitude(power=power).plan(job)
    for name, chosen in large.items():
        assert (plan.keep[name][chosen] == 1).all()
    shares = [float(kept.mean()) for kept in plan.keep.values()]
    assert max(shares) - min(shares) < 0.2
