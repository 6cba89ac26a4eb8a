"""Channels by chance, which depends on the seed alone."""

from conftest import fresh

from thrifty.prune.job import PruneJob
from thrifty.prune.methods.random import Random


def test_another_seed_keeps_other_channels(made_job: PruneJob) -> None:
    method = Random(before=0.1)
    assert method.plan(fresh(made_job)).keep.keys() == {group.name for group in made_job.groups}
    assert method.plan(fresh(made_job)) != method.plan(fresh(made_job, seed=1))
