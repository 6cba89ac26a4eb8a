"""The laws of every method in the folder, on a tiny model with random weights."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from thrifty import catalogue
from thrifty.errors import SettingError
from thrifty.moe.evaluate import load
from thrifty.moe.job import MoeJob
from thrifty.moe.masking import experts_of, masked
from thrifty.plan import Plan

NAMES = catalogue.names("moe")


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def method_of(name: str) -> Any:
    """The method with few experts, for few tokens."""
    method = catalogue.find("moe", name)()
    has_experts = "num_experts" in {field.name for field in fields(method)}
    return replace(method, num_experts=4) if has_experts else method


@pytest.fixture(scope="module")
def planned(name: str, job: MoeJob) -> Plan:
    return method_of(name).plan(job)


def test_every_expert_whole_equals_the_dense_model(planned: Plan, job: MoeJob) -> None:
    whole = {part: torch.ones_like(kept) for part, kept in planned.keep.items()}
    evidence = {fact: value for fact, value in planned.evidence.items() if not fact.endswith(".bias")}
    ids = job.corpus.held_out
    dense = job.model(ids).logits
    with masked(job.model, Plan(planned.method, whole, evidence)):
        assert torch.equal(job.model(ids).logits, dense)


def test_every_token_gets_an_expert_and_every_expert_has_the_layers_width(planned: Plan, job: MoeJob) -> None:
    for site in job.sites:
        widths = experts_of(planned, site).sum(-1)
        assert (widths == widths[0]).all()
        assert widths[0] % 16 == 0
    for shares in load(job.model, planned, job.corpus.held_out).values():
        assert shares.sum() == pytest.approx(1)


@pytest.mark.parametrize(("active", "widths"), [(0.5, "layer"), (0.5, "equal"), (0.75, "layer")])
def test_a_plan_meets_its_budget(name: str, job: MoeJob, active: float, widths: Any) -> None:
    asked = MoeJob.of(job.model, job.corpus, active, widths=widths, steps=3, batch=2, calibration=8)
    plan = method_of(name).plan(asked)
    assert asked.budget.fits(plan.keep)
    largest_step = 16 * max(part.unit_weights for part in asked.sizes.parts.values()) * len(asked.sites)
    assert asked.budget.spent(plan.keep) > asked.budget.limit - largest_step
    if widths == "equal":
        assert len({int(kept.sum(-1).max()) for kept in plan.keep.values()}) == 1


def test_a_plan_repeats_with_its_seed_and_survives_saving(name: str, planned: Plan, job: MoeJob, tmp_path) -> None:
    again = method_of(name).plan(job)
    planned.save(tmp_path / "plan.safetensors")
    for other in (again, Plan.load(tmp_path / "plan.safetensors")):
        assert other == planned
        assert other.evidence.keys() == planned.evidence.keys()
        assert all(torch.equal(other.evidence[fact], value) for fact, value in planned.evidence.items())


def test_the_model_is_as_it_was(name: str, job: MoeJob) -> None:
    before = {key: value.clone() for key, value in job.model.state_dict().items()}
    asked = {key: value.requires_grad for key, value in job.model.named_parameters()}
    method_of(name).plan(job)
    assert all(torch.equal(value, before[key]) for key, value in job.model.state_dict().items())
    assert {key: value.requires_grad for key, value in job.model.named_parameters()} == asked
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in job.model.modules())


def test_a_budget_that_cannot_be_met_is_refused(job: MoeJob) -> None:
    for active in (0.0, 1.0, 1.2):
        with pytest.raises(SettingError, match="between 0 and 1"):
            MoeJob.of(job.model, job.corpus, active)
    with pytest.raises(SettingError, match="stays whole"):
        MoeJob.of(job.model, job.corpus, 0.01, "model")
