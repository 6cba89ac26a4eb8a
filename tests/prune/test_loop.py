"""ATO inside a training loop of one's own: four phases, exact zeros, a cut that changes nothing that is computed."""

import copy
from typing import Any

import pytest
import torch
from conftest import fresh
from torch import nn
from torch.nn.functional import cross_entropy

from thrifty.errors import DataError, SettingError
from thrifty.prune.evaluate import evaluating
from thrifty.prune.job import PruneJob
from thrifty.prune.loop import Loop, Phases
from thrifty.prune.methods.ato import Ato

STEPS = 40


class Training:
    """A loop as a user would write it, one step at a time; the loss of the last step stays alive, as it does there."""

    def __init__(self, job: PruneJob, method: Ato | None = None, optimizer: str = "SGD", **changes: Any) -> None:
        self.job, self.model = job, job.model.train()
        rate = {"SGD": {"lr": 0.05, "momentum": 0.9}, "AdamW": {"lr": 1e-3}}[optimizer]
        self.optimizer = getattr(torch.optim, optimizer)(self.model.parameters(), **rate)
        method = method or Ato()
        self.loop: Loop = method.loop_of(self.model, self.optimizer, job.coupling, job.budget, STEPS, **changes)
        self.chance = torch.Generator().manual_seed(0)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(0, len(self.job.images.train), (32,), generator=self.chance)
        split = self.job.images.train.take(chosen)
        return split.pixels.permute(0, 3, 1, 2).float() / 255, split.labels

    def step(self) -> bool:
        inputs, labels = self.batch()
        self.loss = cross_entropy(self.model(inputs), labels)
        self.loss.backward()
        self.optimizer.step()
        if self.loop.wants_controller_step:
            self.loop.controller_step(*self.batch())
        is_cut = self.loop.after_step()
        self.optimizer.zero_grad()
        return is_cut

    def until_cut(self) -> int:
        return next(number for number in range(1, STEPS + 1) if self.step())


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_the_network_is_cut_once_and_trains_on(made_job: PruneJob, optimizer: str) -> None:
    training = Training(fresh(made_job), optimizer=optimizer)
    phases, cuts = [], []
    for number in range(STEPS):
        phases.append(training.loop.phase)
        if training.step():
            cuts.append(number)
    assert list(dict.fromkeys(phases)) == ["warm-up", "search", "shrink", "dense"]
    assert len(cuts) == 1
    assert training.loop.search.budget.fits(training.loop.mask)
    assert sum(one.numel() for one in training.model.parameters()) < sum(
        one.numel() for one in made_job.model.parameters()
    )
    held = [state for state in training.optimizer.state.values() if isinstance(state.get("exp_avg"), torch.Tensor)]
    shapes = [state["exp_avg"].shape for state in held]
    assert shapes == [one.shape for one in training.model.parameters()][: len(shapes)]


def test_what_goes_is_zero_before_it_goes_and_the_cut_changes_no_output(made_job: PruneJob) -> None:
    training = Training(fresh(made_job))
    last = training.loop._step_at(training.loop.phases.shrink)
    for _ in range(last - 1):
        assert not training.step()
    inputs, _ = training.batch()
    training.loss = cross_entropy(training.model(inputs), training.batch()[1])
    training.loss.backward()
    training.optimizer.step()
    before = copy.deepcopy(training.model)
    training.loop.projection.scale(training.loop.search.layout.flat(training.loop.mask))  # as after the last step
    kept = training.loop.projection.norms()
    assert training.loop.after_step()
    with evaluating(training.model), evaluating(before), torch.no_grad():
        masked = copy.deepcopy(before)
        from thrifty.prune.gating import zero

        zero(masked, made_job.groups, training.loop.mask)
        assert torch.allclose(training.model(inputs), masked.eval()(inputs), atol=1e-5)
    assert ((kept == 0) == (training.loop.search.layout.flat(training.loop.mask) == 0)).all()


def test_parts_that_go_become_smaller_with_each_step_of_the_shrink_phase(made_job: PruneJob) -> None:
    training = Training(fresh(made_job), Ato(search=0.3, shrink=0.8))
    while training.loop.keep is None:
        training.step()
    dropped = training.loop.search.layout.flat(training.loop.mask) == 0
    longest = []
    while training.loop.phase == "shrink":
        longest.append(float(training.loop.projection.norms()[dropped].max()))
        if training.step():
            break
    assert longest[-1] < 0.2 * longest[0]


def test_the_published_recipe_keeps_its_size_to_the_last_step(made_job: PruneJob) -> None:
    training = Training(fresh(made_job), Ato(recipe="published"))
    assert training.until_cut() == STEPS
    assert training.loop.search.budget.fits(training.loop.mask)


def test_a_published_part_that_was_dropped_is_zero_at_the_end_of_every_late_step(made_job: PruneJob) -> None:
    training = Training(fresh(made_job), Ato(recipe="published"))
    for _ in range(STEPS - 1):
        training.step()
    dropped = training.loop.search.layout.flat(training.loop.mask) == 0
    assert (training.loop.projection.norms()[dropped] == 0).all()


def test_the_controller_leaves_weights_statistics_and_gradients_alone(made_job: PruneJob) -> None:
    training = Training(fresh(made_job))
    training.step()
    before = copy.deepcopy(training.model.state_dict())
    while not training.loop.wants_controller_step:
        training.loop.done += 1
    training.optimizer.zero_grad()
    training.loop.controller_step(*training.batch())
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.model.state_dict().items())
    assert all(one.grad is None for one in training.model.parameters())
    assert training.model.training


def test_the_epoch_tells_how_far_it_is(made_job: PruneJob) -> None:
    training = Training(fresh(made_job))
    for _ in range(6):
        training.step()
    facts = training.loop.epoch_end(lambda model: 0.5)
    assert facts["phase"] in ("search", "shrink")
    assert facts["target"] == made_job.budget.limit
    assert facts["kept"] == made_job.budget.spent(training.loop.mask)
    assert (facts["accuracy_masked"], facts["accuracy_whole"]) == (0.5, 0.5)


def test_an_own_loss_may_take_any_targets(made_job: PruneJob) -> None:
    seen = []

    def criterion(logits: torch.Tensor, targets: dict) -> torch.Tensor:
        seen.append(targets)
        return cross_entropy(logits, targets["labels"])

    training = Training(fresh(made_job), criterion=criterion)
    while not training.loop.wants_controller_step:
        training.step()
    inputs, labels = training.batch()
    training.loop.controller_step(inputs, {"labels": labels})
    assert len(seen) == 1


@pytest.mark.parametrize("wrong", [(0.3, 0.2, 0.4), (0.1, 0.5, 0.4), (0.1, 0.5, 1.2), (-0.1, 0.5, 0.6)])
def test_phases_in_no_order_are_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(SettingError, match="must rise"):
        Phases(*wrong)


def test_too_few_steps_are_refused(made_job: PruneJob) -> None:
    job = fresh(made_job)
    optimizer = torch.optim.SGD(job.model.parameters(), 0.1)
    with pytest.raises(SettingError, match="at least 10"):
        Ato().loop_of(job.model, optimizer, job.coupling, job.budget, 9)


def test_a_loss_that_is_no_number_does_not_decide_what_is_kept(made_job: PruneJob) -> None:
    training = Training(fresh(made_job), criterion=lambda logits, labels: logits.sum() * float("nan"))
    with pytest.raises(DataError, match="no number"):
        training.until_cut()


@pytest.mark.parametrize("stop", [4, 11, 16])
def test_a_loop_goes_on_from_its_checkpoint_before_and_after_the_cut(stop: int) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer, Loop]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return model, optimizer, Ato().loop(model, optimizer, (torch.randn(2, 6),), keep="params=60%", num_steps=20)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, pruning: Loop, first: int, last: int) -> None:
        for step in range(first, last):
            torch.manual_seed(step)
            inputs, targets = torch.randn(8, 6), torch.randint(0, 4, (8,))
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            if pruning.wants_controller_step:
                pruning.controller_step(inputs, targets)
            pruning.after_step()

    whole, stopped, again = made(), made(), made()
    train(*whole, 0, 20)
    train(*stopped, 0, stop)
    for place in (2, 0, 1):
        again[place].load_state_dict(copy.deepcopy(stopped[place].state_dict()))
    train(*again, stop, 20)
    assert all(map(torch.equal, again[0].parameters(), whole[0].parameters()))


class Sum(nn.Module):
    """A network of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x + y)))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adafactor])
def test_a_network_may_take_several_inputs_and_any_optimizer(optimizer: type[torch.optim.Optimizer]) -> None:
    model, inputs = Sum(), (torch.randn(8, 6), torch.randn(8, 6))
    taught = optimizer(model.parameters(), 0.01)
    pruning = Ato().loop(model, taught, inputs, keep="params=60%", num_steps=20)
    for _ in range(20):
        nn.functional.cross_entropy(model(*inputs), torch.arange(8) % 4).backward()
        taught.step()
        taught.zero_grad()
        if pruning.wants_controller_step:
            pruning.controller_step(inputs, torch.arange(8) % 4)
        pruning.after_step()
    assert len(model.first.weight) < 8


def test_a_model_of_one_s_own_is_captured_and_cut() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    pruning = Ato().loop(model, optimizer, (torch.randn(2, 3, 8, 8),), keep="params=60%", num_steps=20)
    for _ in range(20):
        loss = model(torch.randn(8, 3, 8, 8)).square().mean()
        loss.backward()
        optimizer.step()
        if pruning.wants_controller_step:
            pruning.controller_step(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,)))
        pruning.after_step()
    assert model[0].out_channels == model[1].num_features < 8
