"""A little more goes at a time, and what is 0 stays 0."""

import itertools

import pytest
import torch
from conftest import fresh

from thrifty.errors import SettingError
from thrifty.prune.job import PruneJob
from thrifty.prune.methods.gradual_magnitude import GradualMagnitude
from thrifty.prune.project import Projection


def test_more_and_more_parts_are_0_and_none_comes_back(made_job: PruneJob, monkeypatch) -> None:
    zeros, scale = [], Projection.scale

    def noted(self, factor: torch.Tensor) -> None:
        scale(self, factor)
        zeros.append(self.norms() == 0)

    monkeypatch.setattr(Projection, "scale", noted)
    job = fresh(made_job)
    plan = GradualMagnitude(stages=10, end=0.8).plan(job)
    counts = [int(one.sum()) for one in zeros]
    assert counts == sorted(counts)
    assert len(set(counts)) >= 4
    assert counts[0] == 0
    for before, after in itertools.pairwise(zeros):
        assert (after | ~before).all()
    dropped = torch.cat([kept == 0 for kept in plan.keep.values()])
    assert (zeros[-1][dropped]).float().mean() > 0.8  # the last part may come back where the budget has room


def test_stages_begin_at_the_start_and_are_over_at_the_end() -> None:
    method = GradualMagnitude(start=0.2, end=0.6, stages=10)
    assert [method._stage(share) for share in (0.0, 0.2, 0.401, 0.601)] == [0, 0, 5, 10]


def test_an_order_that_is_none_is_refused() -> None:
    with pytest.raises(SettingError, match="start < end"):
        GradualMagnitude(start=0.5, end=0.4)
