"""FactorLLM: slices as they lie, routed to the one closest to the dense output."""

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.moe import calibrate
from thrifty.moe.job import MoeJob
from thrifty.moe.methods.factor_llm import FactorLlm


def test_an_expert_is_one_run_of_channels_around_the_end(job: MoeJob) -> None:
    for kept in FactorLlm(num_experts=4).plan(job).keep.values():
        for number, row in enumerate(kept):
            assert torch.equal(row.roll(-number * 24), torch.cat([torch.ones(48), torch.zeros(48)]))


def test_the_router_is_better_than_chance_at_finding_the_closest_expert(job: MoeJob) -> None:
    plan = FactorLlm(num_experts=4).plan(job)
    hits = []

    def look(site, x, h) -> None:
        masks = plan.keep[site.name]
        lost = torch.stack([((h * (1 - row)) @ site.down.weight.T).square().sum(-1) for row in masks], -1)
        hits.append(((x @ plan.evidence[f"{site.name}.router"].T).argmax(-1) == lost.argmin(-1)).float().mean())

    calibrate.visit(job, look)
    assert torch.stack(hits).mean() > 0.35


def test_a_single_expert_is_refused() -> None:
    with pytest.raises(SettingError, match="2 experts"):
        FactorLlm(num_experts=1)
