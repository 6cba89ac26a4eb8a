"""ATO's recipes, its settings, and what it keeps."""

from dataclasses import replace

import pytest
import torch
from conftest import QUICK, fresh
from torch import nn

from thrifty.errors import SettingError
from thrifty.prune import images
from thrifty.prune.apply import apply
from thrifty.prune.evaluate import largest_difference
from thrifty.prune.gating import masked
from thrifty.prune.job import PruneJob, example_of
from thrifty.prune.methods.ato import Ato
from thrifty.prune.models import ResNet
from thrifty.prune.run import Run
from thrifty.prune.training import Training


def sizes_of(method: Ato, job: PruneJob, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parameters the network has in each step."""
    sizes, step = [], Run.step

    def counted(run: Run, *given):
        sizes.append(sum(one.numel() for one in run.model.parameters()))
        return step(run, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", counted)
        method.plan(job)
    return sizes


def test_the_improved_network_is_small_from_the_end_of_the_shrink_phase(made_job: PruneJob, monkeypatch) -> None:
    sizes = sizes_of(Ato(shrink=0.5), fresh(made_job), monkeypatch)
    assert set(sizes[: len(sizes) // 2]) == {sizes[0]}
    assert set(sizes[len(sizes) // 2 :]) == {sizes[-1]}
    assert sizes[-1] < sizes[0]


def test_the_published_network_is_whole_to_the_end(made_job: PruneJob, monkeypatch) -> None:
    assert len(set(sizes_of(Ato(recipe="published"), fresh(made_job), monkeypatch))) == 1


def test_the_published_recipe_has_the_published_numbers() -> None:
    one = Ato(recipe="published")
    phases, search = one._phases(), one._search(1000)
    assert (phases.every, phases.strength, phases.strength_after) == (20, 10, 1000)
    assert (phases.warm_up, phases.search, phases.late) == (0.1, 0.5, 0.2)  # of 245 epochs: 25, 124, 50
    assert (search.temperature, search.offset, search.strength, search.learning_rate) == (0.4, 3.0, 8.0, 1e-3)
    assert search.is_soft
    assert not search.is_annealed


def test_a_search_of_few_steps_takes_longer_ones() -> None:
    assert Ato()._search(200).learning_rate == pytest.approx(1e-3)
    assert Ato()._search(50).learning_rate == pytest.approx(4e-3)
    assert Ato()._search(4000).learning_rate == pytest.approx(1e-3)


def test_the_held_out_images_are_trained_on_only_after_the_cut(made_job: PruneJob, monkeypatch) -> None:
    seen, step = [], Run.step

    def noted(run: Run, *given):
        result = step(run, *given)
        held = set(run.holdout.tolist())
        seen.append((run.keep is not None, bool(held & set(run.epoch_draw[:, 0].tolist()))))
        return result

    monkeypatch.setattr(Run, "step", noted)
    Ato(search=0.4, shrink=0.5).plan(fresh(made_job))
    assert not any(is_seen for is_cut, is_seen in seen if not is_cut)
    assert seen[-1] == (True, True)


@pytest.mark.parametrize("wrong", [{"warm_up": 0.5}, {"shrink": 0.1}, {"averaging": 1.0}, {"search": 1.5}])
def test_settings_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingError):
        Ato(**wrong)


class Half(nn.Module):
    """A network in which every second channel comes to nothing, whatever the weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.classifier = nn.Linear(16, 10)
        self.register_buffer("alive1", (torch.arange(12) % 2).float().view(1, -1, 1, 1))
        self.register_buffer("alive2", (torch.arange(16) % 2).float().view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.conv1(x))) * self.alive1
        x = torch.relu(self.norm2(self.conv2(x))) * self.alive2
        return self.classifier(x.mean((2, 3)))


@pytest.mark.slow
def test_channels_that_come_to_nothing_go() -> None:
    found = images.load("digits")
    torch.manual_seed(0)
    training = Training(epochs=20, batch_size=64, learning_rate=0.2, holdout=0.1)
    keep = Ato().plan(PruneJob.of(Half(), found, "flops=40%", training)).keep
    assert sum(float(one[1::2].sum()) for one in keep.values()) >= 13  # of 14 that matter
    assert sum(float(one[0::2].sum()) for one in keep.values()) <= 6  # of 14 that do not; the budget has room for some


def test_residual_streams_shrink_only_where_asked(few_digits) -> None:
    torch.manual_seed(0)
    job = PruneJob.of(ResNet([2], [8]), few_digits, "flops=40%", QUICK, residual=True)
    streams = {group.name for group in job.groups if group.is_residual}
    assert streams
    assert not streams & {group.name for group in replace(job, residual=False).groups}
    plan = Ato().plan(job)
    assert any(plan.keep[name].sum() < plan.keep[name].numel() for name in streams)
    small = apply(plan, job.model, job.coupling)
    with masked(job.model, job.groups, plan.keep):
        assert largest_difference(small, job.model, example_of(job.images)) < 1e-5
