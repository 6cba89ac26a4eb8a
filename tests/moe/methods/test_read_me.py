"""Read-ME: one router for all layers."""

import pytest

from thrifty.errors import SettingError
from thrifty.moe.job import MoeJob
from thrifty.moe.masking import source_of
from thrifty.moe.methods.read_me import ReadMe


def test_only_the_first_layer_has_a_router_and_it_serves_all(job: MoeJob) -> None:
    plan = ReadMe(num_experts=4).plan(job)
    assert source_of(plan) == 0
    assert [name for name in plan.evidence if name.endswith(".router")] == ["layers.0.mlp.router"]


def test_experts_differ_by_what_their_tokens_need(job: MoeJob) -> None:
    for kept in ReadMe(num_experts=4).plan(job).keep.values():
        assert len({tuple(row) for row in kept.tolist()}) == 4


def test_a_single_expert_is_refused() -> None:
    with pytest.raises(SettingError, match="use 2"):
        ReadMe(num_experts=1)
