"""The laws of every method in the folder that makes a network smaller."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from thrifty import catalogue
from thrifty.plan import Plan
from thrifty.prune.apply import apply
from thrifty.prune.evaluate import largest_difference
from thrifty.prune.gating import masked
from thrifty.prune.job import PruneJob, example_of

NAMES = catalogue.names("prune")
DONE: dict[str, tuple[Plan, PruneJob]] = {}


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def planned(name: str, job: PruneJob) -> tuple[Plan, PruneJob]:
    """The plan of a method, and the job with the network that it trained; the same in every test."""
    if name not in DONE:
        own = replace(job, model=copy.deepcopy(job.model))
        DONE[name] = (catalogue.find("prune", name)().plan(own), own)
    return DONE[name]


def test_the_plan_fits_the_budget_and_leaves_little_of_it(name: str, made_job: PruneJob) -> None:
    plan, job = planned(name, made_job)
    assert job.budget.fits(plan.keep)
    assert job.budget.spent(plan.keep) > 0.9 * job.budget.limit  # channels of so small a network are large pieces


def test_no_group_is_emptied_and_none_is_left_out(name: str, made_job: PruneJob) -> None:
    plan, job = planned(name, made_job)
    assert {group.name: group.size for group in job.groups} == {part: kept.numel() for part, kept in plan.keep.items()}
    for kept in plan.keep.values():
        assert set(kept.unique().tolist()) <= {0.0, 1.0}
        assert kept.sum() >= 1


def test_the_plan_survives_saving(name: str, made_job: PruneJob, tmp_path) -> None:
    plan, _ = planned(name, made_job)
    plan.save(tmp_path / "plan.safetensors")
    assert Plan.load(tmp_path / "plan.safetensors") == plan


def test_plan_and_weights_repeat_with_the_seed(name: str, made_job: PruneJob) -> None:
    plan, job = planned(name, made_job)
    again = replace(made_job, model=copy.deepcopy(made_job.model))
    assert catalogue.find("prune", name)().plan(again) == plan
    for key, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, job.model.state_dict()[key]), key


def test_the_small_network_equals_the_masked_one(name: str, made_job: PruneJob) -> None:
    plan, job = planned(name, made_job)
    small = apply(plan, job.model, job.coupling)
    assert sum(one.numel() for one in small.parameters()) < sum(one.numel() for one in job.model.parameters())
    with masked(job.model, job.groups, plan.keep):
        assert largest_difference(small, job.model, example_of(job.images)) < 1e-5


def test_what_is_dropped_is_exactly_zero_in_the_trained_network(name: str, made_job: PruneJob) -> None:
    plan, job = planned(name, made_job)
    before = {key: tensor.clone() for key, tensor in job.model.state_dict().items()}
    with masked(job.model, job.groups, plan.keep):
        for key, tensor in job.model.state_dict().items():
            assert torch.equal(tensor, before[key]), key


def test_the_training_has_changed_the_network(name: str, made_job: PruneJob) -> None:
    _, job = planned(name, made_job)
    assert not torch.equal(job.model.stem.weight, made_job.model.stem.weight)


def test_a_method_that_is_made_from_its_own_text_is_equal(name: str) -> None:
    method: Any = catalogue.find("prune", name)()
    assert eval(repr(method), {type(method).__name__: type(method)}) == method
