"""The controller learns what to keep: it meets the budget, prefers what matters, and repeats."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import fresh

from thrifty.budget import Budget, joint
from thrifty.prune.cost import budget_of
from thrifty.prune.job import PruneJob
from thrifty.prune.layout import Layout
from thrifty.prune.methods.ato import Ato
from thrifty.prune.run import Run
from thrifty.prune.search import Search, SearchSettings
from thrifty.prune.training import Training

LAYOUT = Layout({"a": 8, "b": 8})
BUDGET = Budget(lambda keep: 3 * keep["a"].sum().double() + keep["b"].sum().double(), 16.0, "channels")
CPU = torch.device("cpu")


def go_on(search: Search, numbers: range, num_steps: int) -> Search:
    """Steps in which the first four parts of each group matter and the others do not."""
    for number in numbers:
        search.step(lambda gates: sum((1 - gate[:4]).sum() for gate in gates.values()), number / num_steps)
    return search


def searched(settings: SearchSettings, num_steps: int = 150, seed: int = 0) -> Search:
    """A search from its first step to its last."""
    return go_on(Search(LAYOUT, BUDGET, settings, CPU, seed), range(num_steps), num_steps)


def test_at_first_everything_is_kept() -> None:
    search = Search(LAYOUT, BUDGET, SearchSettings(), CPU, 0)
    assert search.mask().sum() == 16
    assert search.whole == [32]


@pytest.mark.parametrize("settings", [SearchSettings(), SearchSettings(is_annealed=False, is_soft=True, averaging=0.0)])
def test_what_matters_is_kept_and_the_budget_is_met(settings: SearchSettings) -> None:
    search = searched(replace(settings, learning_rate=3e-3))
    kept = LAYOUT.named(search.mask())
    assert BUDGET.spent(kept) == pytest.approx(16, abs=3)
    assert all(part[:4].sum() >= 3 and part[4:].sum() <= 2 for part in kept.values())


def test_the_limit_falls_from_the_whole_network_to_the_budget() -> None:
    search = Search(LAYOUT, BUDGET, SearchSettings(), CPU, 0)
    limits = [search.limits_at(progress / 10)[0] for progress in range(11)]
    assert limits[0] == pytest.approx(32)
    assert limits == sorted(limits, reverse=True)
    assert limits[7:] == pytest.approx([16] * 4)
    assert Search(LAYOUT, BUDGET, SearchSettings(is_annealed=False), CPU, 0).limits_at(0.0) == [16]


def test_a_search_repeats_with_its_seed_and_goes_on_from_its_state() -> None:
    whole = searched(SearchSettings(), 20)
    assert torch.equal(searched(SearchSettings(), 20).average, whole.average)
    assert not torch.equal(searched(SearchSettings(), 20, seed=1).average, whole.average)
    half = go_on(Search(LAYOUT, BUDGET, SearchSettings(), CPU, 0), range(10), 20)
    again = Search(LAYOUT, BUDGET, SearchSettings(), CPU, 0)
    again.load_state_dict(half.state_dict())
    assert torch.equal(go_on(again, range(10, 20), 20).average, whole.average)


def test_no_mask_empties_a_group() -> None:
    search = Search(LAYOUT, BUDGET, SearchSettings(), CPU, 0)
    search.average = torch.full((16,), -50.0)
    search.average[11] = -49.0
    kept = LAYOUT.named(search.mask())
    assert [part.sum() for part in kept.values()] == [1, 1]
    assert kept["b"][3] == 1


def test_within_the_dead_zone_the_budget_pulls_no_more() -> None:
    settings = SearchSettings(dead_zone=0.05, is_annealed=False, has_pressure=False)
    search = Search(LAYOUT, BUDGET, settings, CPU, 0)
    search.prepare(0.0)
    for share, pulls in ((0.5, False), (0.52, False), (0.7, True)):
        keep = {name: torch.full((8,), share, requires_grad=True) for name in ("a", "b")}
        gradient = torch.autograd.grad(search._budget_term(keep), keep["a"])[0]
        assert bool(gradient.abs().sum() > 0) == pulls


def test_the_gradient_of_the_weights_is_left_alone() -> None:
    weight = torch.ones(8, requires_grad=True)
    search = Search(LAYOUT, BUDGET, SearchSettings(), CPU, 0)
    search.step(lambda gates: (weight * gates["a"]).sum(), 0.0)
    assert weight.grad is None


def test_every_limit_of_a_budget_has_a_pressure_of_its_own() -> None:
    limits = [Budget(lambda keep, name=name: keep[name].sum().double(), 4.0, name) for name in ("a", "b")]
    search = Search(LAYOUT, joint(limits), SearchSettings(is_annealed=False), CPU, 0)
    keep = {"a": torch.full((8,), 0.9, requires_grad=True), "b": torch.full((8,), 0.2, requires_grad=True)}
    search.prepare(0.1)
    too_much, little_enough = torch.autograd.grad(search._budget_term(keep), [keep["a"], keep["b"]])
    assert search.pressure[0] > 0
    assert search.pressure[1] == 0
    assert (too_much > 0).all()
    assert (little_enough == 0).all()


def test_a_draw_that_closes_all_gates_is_survived() -> None:
    search = Search(LAYOUT, BUDGET, SearchSettings(), CPU, 0)
    search.prepare(0.1)
    keep = {name: torch.zeros(8, requires_grad=True) for name in ("a", "b")}
    search.pressure.fill_(1.0)
    term = search._budget_term(keep)
    gradient = torch.autograd.grad(term, keep["a"])[0]
    assert bool(term.isfinite() & gradient.isfinite().all() & search.pressure.isfinite().all())


def test_the_second_half_of_a_step_reads_only_tensors_that_stay_where_they_are() -> None:
    search = Search(LAYOUT, BUDGET, SearchSettings(), CPU, 0)
    held = [search._noise, search._limits, search._gain, search.pressure, search.average]
    places = [one.data_ptr() for one in held]
    go_on(search, range(5), 20)
    search.load_state_dict(search.state_dict())
    again = [search._noise, search._limits, search._gain, search.pressure, search.average]
    assert [one.data_ptr() for one in again] == places


GRAPHED = Training(epochs=40, batch_size=32, learning_rate=0.05)


@pytest.mark.parametrize("keep", ["flops=50%", "params=60%,activations=80%"])
@pytest.mark.parametrize("recipe", ["improved", "published"])
def test_a_controller_step_waits_for_no_value(made_job: PruneJob, no_waiting, keep: str, recipe: str) -> None:
    job = fresh(made_job)
    optimizer = torch.optim.SGD(job.model.parameters(), 0.1)
    budget = budget_of(keep, job.coupling, model=job.model)
    loop = Ato(recipe=recipe).loop_of(job.model, optimizer, job.coupling, budget, 100)
    while loop.phase == "warm-up":
        loop.after_step()
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    for _ in range(2):
        loop.controller_step(images, labels)
    with no_waiting:
        loop.controller_step(images, labels)
        loop.after_step()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_replayed_controller_learns_what_an_eager_one_learns(made_job: PruneJob, precision: str) -> None:
    def learnt(is_replayed: bool) -> tuple[torch.Tensor, list[float]]:
        training = replace(GRAPHED, precision=precision)
        job = fresh(made_job, training=training, device=torch.device("cuda"))
        losses = []
        with Run(job, Ato()) as run:
            loop = Ato().loop_of(run.model, run.optimizer, job.coupling, job.budget, run.num_steps)
            if is_replayed:
                loop.replay_controller()
            while loop.phase == "warm-up":
                loop.after_step()
            before = copy.deepcopy(run.model.state_dict())
            for _ in range(15):
                run.done = loop.done = loop.done + 3  # other images and other limits each time
                with run.precision:
                    losses.append(float(loop.controller_step(*run.held_out_batch())))
            assert all(torch.equal(one, before[name]) for name, one in run.model.state_dict().items())
            assert all(one.grad is None for one in run.model.parameters())
            return loop.search.average.cpu(), losses

    (replayed, fast), (eager, slow) = learnt(True), learnt(False)
    assert fast == pytest.approx(slow, abs=0.02 if precision == "float32" else 0.05)
    assert torch.allclose(replayed, eager, atol=0.15)
    assert eager.abs().mean() > 0.5  # at first all are near 0


@pytest.mark.gpu
def test_ato_on_a_gpu_prunes_alike_with_and_without_graphs(made_job: PruneJob) -> None:
    def pruned(form: str) -> tuple[PruneJob, dict]:
        training = replace(GRAPHED, epochs=24, form=form)
        job = fresh(made_job, training=training, device=torch.device("cuda"))
        return job, Ato().plan(job).keep

    for form in ("eager", "graph"):
        job, keep = pruned(form)
        assert job.budget.fits(keep)
        assert job.history[-1]["phase"] == "dense"
        assert job.history[-1]["accuracy_train"] > 0.3  # of ten digits
