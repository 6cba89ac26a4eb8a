"""Widths come from the flow through the network before any training."""

import torch
from conftest import fresh

from thrifty.prune.job import PruneJob
from thrifty.prune.methods.pre_cropping import PreCropping
from thrifty.prune.methods.uniform import Uniform
from thrifty.prune.run import Run


def test_a_channel_through_which_nothing_flows_goes_first(made_job: PruneJob) -> None:
    job = fresh(made_job)
    group = job.groups[0]
    dead = torch.arange(group.size) % 2 == 0
    with torch.no_grad():
        job.model.get_submodule(group.name).weight[dead] *= 1e-6
    keep = PreCropping()._keep(job)
    assert keep[group.name][~dead].sum() >= keep[group.name][dead].sum()
    assert keep[group.name][dead].sum() <= 1
    assert job.budget.fits(keep)


def test_nothing_is_trained_before_the_crop_and_the_weights_are_left_alone(made_job: PruneJob, monkeypatch) -> None:
    cuts, cut = [], Run.cut

    def noted(run: Run, keep) -> None:
        cuts.append(run.done)
        cut(run, keep)

    monkeypatch.setattr(Run, "cut", noted)
    job = fresh(made_job)
    before = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    PreCropping()._keep(job)
    assert all(torch.equal(tensor, before[name]) for name, tensor in job.model.state_dict().items())
    PreCropping().plan(job)
    assert cuts == [0]


def test_the_widths_are_not_those_of_a_uniform_network(made_job: PruneJob) -> None:
    uniform = Uniform().plan(fresh(made_job)).keep
    assert any(kept.sum() != uniform[name].sum() for name, kept in PreCropping()._keep(fresh(made_job)).items())
