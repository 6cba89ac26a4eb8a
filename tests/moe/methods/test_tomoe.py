"""ToMoE: the paper's weights are its defaults, and the published start is the paper's."""

from dataclasses import replace

import pytest
import torch

from thrifty import gates
from thrifty.errors import SettingError
from thrifty.moe.job import MoeJob
from thrifty.moe.learnt import Learnt
from thrifty.moe.methods.tomoe import Tomoe


def test_the_weights_of_the_losses_are_those_of_the_paper() -> None:
    one = Tomoe()
    assert (one.distil, one.limit, one.union, one.balance, one.num_experts) == (2, 16, 3, 1, 8)


def test_the_published_start_has_every_gate_open(job: MoeJob) -> None:
    learnt = Learnt(job.sites, 8, job.generator())
    for logits in learnt.logits().values():
        assert gates.keep_probability(logits).min() > 0.99


def test_the_history_of_the_training_is_evidence(job: MoeJob) -> None:
    plan = Tomoe(num_experts=4).plan(job)
    assert plan.evidence["history"].shape == (job.steps, 4)
    assert plan.evidence["history"][:, 0].tolist() == list(range(job.steps))


def test_free_logits_and_the_controller_start_from_the_same_experts(job: MoeJob) -> None:
    asked = replace(job, steps=1)
    one, two = (Tomoe(num_experts=4, logits=kind, rate=1e-9, first=0.5).plan(asked) for kind in ("controller", "free"))
    same = [(kept == two.keep[name]).float().mean() for name, kept in one.keep.items()]
    assert torch.stack(same).mean() > 0.98


def test_a_wrong_start_is_refused_with_the_right_ones() -> None:
    method = Tomoe()
    object.__setattr__(method, "start", "warm")
    with pytest.raises(SettingError, match="clustered, centroids, published"):
        method.__post_init__()
