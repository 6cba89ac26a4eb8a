"""A small network's weights back in the whole one: the same function, and what was dropped is 0."""

import copy

import torch
from conftest import fresh

from thrifty.prune.apply import smaller
from thrifty.prune.evaluate import largest_difference
from thrifty.prune.job import PruneJob
from thrifty.prune.restore import whole_state
from thrifty.prune.trial import half, unsettled


def test_a_restored_network_computes_what_the_small_one_does(made_job: PruneJob) -> None:
    job = fresh(made_job)
    generator = torch.Generator().manual_seed(0)
    unsettled(job.model, generator)
    keep = {group.name: half(group.size, generator) for group in job.groups}
    small = smaller(job.model, job.coupling, keep)
    with torch.no_grad():
        for one in small.parameters():
            one.add_(torch.randn(one.shape, generator=generator) * 0.1)  # it has been trained since
    before = copy.deepcopy(small.state_dict())
    job.model.load_state_dict(whole_state(job.model, job.coupling, keep, small.state_dict()))
    assert largest_difference(job.model, small, torch.randn(4, 3, 8, 8)) < 1e-5
    again = smaller(job.model, job.coupling, keep).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.items())


def test_where_nothing_went_the_state_is_the_same(made_job: PruneJob) -> None:
    keep = {group.name: torch.ones(group.size) for group in made_job.groups}
    state = whole_state(made_job.model, made_job.coupling, keep, made_job.model.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in made_job.model.state_dict().items())
