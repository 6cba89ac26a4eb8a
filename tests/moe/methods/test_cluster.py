"""Clusters alone: the start of ToMoE, no training."""

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.moe.evaluate import quality, shuffled, with_plan
from thrifty.moe.job import MoeJob
from thrifty.moe.methods.cluster import Cluster


@pytest.mark.parametrize("by_need", [True, False])
def test_clusters_beat_their_own_experts_at_the_wrong_tokens(job: MoeJob, by_need: bool) -> None:
    plan = Cluster(num_experts=4, by_need=by_need).plan(job)
    contenders = {"plan": with_plan(job.model, plan), "shuffled": with_plan(job.model, shuffled(plan))}
    found = quality(job.model, job.corpus.held_out, contenders)
    assert found["plan"]["kl"] < 0.8 * found["shuffled"]["kl"]


def test_one_expert_needs_no_router(job: MoeJob) -> None:
    plan = Cluster(num_experts=1).plan(job)
    assert not plan.evidence
    assert all(kept.shape[0] == 1 for kept in plan.keep.values())


def test_more_experts_are_closer_to_the_dense_model(job: MoeJob) -> None:
    contenders = {str(n): with_plan(job.model, Cluster(num_experts=n).plan(job)) for n in (1, 8)}
    found = quality(job.model, job.corpus.first(16), contenders)
    assert found["8"]["kl"] < found["1"]["kl"]


def test_no_expert_is_refused() -> None:
    with pytest.raises(SettingError, match="num_experts=0"):
        Cluster(num_experts=0)


def test_another_seed_gives_other_groups(job: MoeJob) -> None:
    one = Cluster(num_experts=4).plan(job)
    other = Cluster(num_experts=4).plan(MoeJob.of(job.model, job.corpus, 0.5, calibration=8, seed=1))
    assert any(not torch.equal(kept, other.keep[name]) for name, kept in one.keep.items())
