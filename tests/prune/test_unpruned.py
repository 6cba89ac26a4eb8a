"""The whole network is trained for as long as the others."""

import torch
from conftest import fresh

from thrifty.prune.job import PruneJob
from thrifty.prune.unpruned import Unpruned


def test_the_whole_network_learns_and_keeps_all(made_job: PruneJob) -> None:
    job = fresh(made_job)
    plan = Unpruned().plan(job)
    assert all((kept == 1).all() for kept in plan.keep.values())
    assert len(job.history) == job.training.epochs
    assert job.history[-1]["loss"] < job.history[0]["loss"]
    assert not torch.equal(job.model.stem.weight, made_job.model.stem.weight)
