"""Redundant parts are pulled down, and 0 once a step has turned them round."""

import pytest
import torch
from conftest import fresh

from thrifty.errors import SettingError
from thrifty.prune.job import PruneJob
from thrifty.prune.methods.dhspg import Dhspg
from thrifty.prune.project import Projection


def pulled(job: PruneJob, method: Dhspg, moved: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lengths of the parts before and after a step that multiplied them by `moved`; every second is redundant."""
    projection = Projection(job.model, job.groups)
    old = [one.detach().clone() for one in projection.parameters]
    before = projection.norms()
    projection.scale(torch.full_like(before, moved))
    kept = (torch.arange(len(before)) % 2).float()
    method._pull(projection, old, kept, rate=1.0)
    return before, projection.norms(), kept == 1


def test_a_redundant_part_becomes_shorter_by_its_strength(made_job: PruneJob) -> None:
    before, after, kept = pulled(fresh(made_job), Dhspg(strength=0.01), 1.0)
    assert torch.allclose(after[kept], before[kept])
    assert torch.allclose(after[~kept], before[~kept] - 0.01, atol=1e-5)


def test_a_part_outside_of_its_half_space_is_0(made_job: PruneJob) -> None:
    _, after, kept = pulled(fresh(made_job), Dhspg(epsilon=0.1), 0.05)
    assert (after[~kept] == 0).all()
    assert (after[kept] > 0).all()
    _, after, kept = pulled(fresh(made_job), Dhspg(epsilon=0.1), 0.5)
    assert (after[~kept] > 0).all()


def test_the_pull_is_twice_what_the_loss_pulls_the_other_way_within_its_bounds(made_job: PruneJob) -> None:
    job = fresh(made_job)
    projection = Projection(job.model, job.groups)
    norms = projection.norms()
    for one in projection.parameters:
        one.grad = -one.detach() * 0.001  # the loss wants the part longer, by 0.001 of itself
    before, after, kept = pulled(job, Dhspg(strength=0.001), 1.0)
    expected = (0.002 * norms).clamp(0.001, 0.01)
    assert torch.allclose((before - after)[~kept], expected[~kept], atol=1e-5)


def test_an_order_that_is_none_is_refused() -> None:
    with pytest.raises(SettingError, match="start < end"):
        Dhspg(start=0.5, end=0.4)
