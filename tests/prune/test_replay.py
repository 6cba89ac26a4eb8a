"""What is replayed is what was called: on a CPU the call itself, on a GPU a graph of it."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import fresh
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from thrifty.prune.cost import budget_of
from thrifty.prune.job import PruneJob
from thrifty.prune.methods.ato import Ato
from thrifty.prune.replay import Replay, uncached_autocast
from thrifty.prune.run import Run
from thrifty.prune.training import Training

CPU = torch.device("cpu")
TRAINING = Training(epochs=40, batch_size=32, learning_rate=0.05)


def test_on_a_cpu_every_call_is_a_call() -> None:
    seen = []
    replay = Replay(lambda x, y: seen.append((x, y)) or x + y, CPU)
    assert [float(replay(torch.tensor(float(n)), torch.tensor(1.0))) for n in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    assert len(seen) == 7


def test_within_an_autocast_weights_are_cast_anew_each_time() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.autocast("cpu", torch.bfloat16), uncached_autocast(CPU), torch.no_grad():
        before = layer(torch.ones(1, 2))
        layer.weight.mul_(2)
        assert before.dtype == torch.bfloat16
        assert torch.equal(layer(torch.ones(1, 2)), 2 * before)
    with uncached_autocast(CPU):
        assert layer(torch.ones(1, 2)).dtype == torch.float32


class NoWaiting(TorchDispatchMode):
    """Refuses what would make a CPU wait for a GPU, which a CUDA graph cannot hold."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("keep", ["flops=50%", "params=60%,activations=80%"])
@pytest.mark.parametrize("recipe", ["improved", "published"])
def test_a_controller_step_waits_for_no_value(made_job: PruneJob, keep: str, recipe: str) -> None:
    job = fresh(made_job)
    optimizer = torch.optim.SGD(job.model.parameters(), 0.1)
    budget = budget_of(keep, job.coupling, model=job.model)
    loop = Ato(recipe=recipe).loop_of(job.model, optimizer, job.coupling, budget, 100)
    while loop.phase == "warm-up":
        loop.after_step()
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    for _ in range(2):
        loop.controller_step(images, labels)
    with NoWaiting():
        loop.controller_step(images, labels)
        loop.after_step()


@pytest.mark.gpu
def test_a_replayed_function_sees_new_values_and_what_it_changes_stays() -> None:
    total = torch.zeros(3, device="cuda")

    def add(x: torch.Tensor) -> torch.Tensor:
        total.add_(x)
        return total * 2

    replay = Replay(add, total.device)
    for number in range(1, 11):
        result = replay(torch.full((3,), float(number), device="cuda"))
        assert result.tolist() == [number * (number + 1)] * 3
    replay.reset()
    assert replay(torch.zeros(3, device="cuda")).tolist() == [110] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_replayed_controller_learns_what_an_eager_one_learns(made_job: PruneJob, precision: str) -> None:
    def learnt(is_replayed: bool) -> tuple[torch.Tensor, list[float]]:
        training = replace(TRAINING, precision=precision)
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
    assert fast == pytest.approx(slow, rel=0.02)
    assert torch.allclose(replayed, eager, atol=0.02)
    assert not torch.allclose(eager, eager[0].expand_as(eager), atol=1e-3)


@pytest.mark.gpu
def test_ato_on_a_gpu_prunes_alike_with_and_without_graphs(made_job: PruneJob) -> None:
    def pruned(form: str) -> tuple[PruneJob, dict]:
        training = replace(TRAINING, epochs=8, form=form)
        job = fresh(made_job, training=training, device=torch.device("cuda"))
        return job, Ato().plan(job).keep

    for form in ("eager", "graph"):
        job, keep = pruned(form)
        assert job.budget.fits(keep)
        assert job.history[-1]["phase"] == "dense"
        assert job.history[-1]["accuracy_train"] > 0.5
