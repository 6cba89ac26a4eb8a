"""The training loop: rates, checkpoints that lose nothing, and processes that share a batch."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from thrifty.errors import DataError, SettingError
from thrifty.moe.train import Recipe, Team, train
from thrifty.progress import silent

RECIPE = Recipe(steps=12, rate=0.1, every=5)


def problem() -> tuple[dict[str, Tensor], Callable[[int], dict[str, Tensor]]]:
    """Weights to be fitted to a target with noise that follows from the step."""
    weight = torch.zeros(6, requires_grad=True)
    kept = torch.zeros(2, dtype=torch.long)

    def gradients(step: int) -> dict[str, Tensor]:
        noise = torch.randn(6, generator=torch.Generator().manual_seed(step))
        value = (weight - torch.arange(6.0) + 0.1 * noise).square().sum()
        kept[0] = step
        value.backward()
        return {"kl": value.detach()}

    return {"weight": weight, "kept": kept}, gradients


def run(
    tensors, gradients, checkpoint: Path | None = None, track=silent, identity: str = "one"
) -> list[dict[str, float]]:
    return train(tensors, gradients, RECIPE, checkpoint=checkpoint, identity=identity, track=track, team=Team())


def stopping_after(steps: int):
    def track(items, what, total):
        for number, item in enumerate(items):
            if number == steps:
                raise KeyboardInterrupt
            yield item

    return track


@pytest.mark.parametrize("steps", [3, 5, 7, 11])
def test_an_interrupted_training_goes_on_bit_for_bit(steps: int, tmp_path: Path) -> None:
    whole, gradients = problem()
    history = run(whole, gradients)
    first, gradients = problem()
    with pytest.raises(KeyboardInterrupt):
        run(first, gradients, tmp_path / "state.safetensors", stopping_after(steps))
    again, gradients = problem()
    resumed = run(again, gradients, tmp_path / "state.safetensors")
    assert torch.equal(again["weight"], whole["weight"])
    assert torch.equal(again["kept"], whole["kept"])
    assert resumed == history
    assert [row["step"] for row in history] == list(range(12))


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    tensors, gradients = problem()
    with pytest.raises(KeyboardInterrupt):
        run(tensors, gradients, path, stopping_after(6))
    with pytest.raises(DataError, match="another training"):
        run(tensors, gradients, path, identity="two")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        run(tensors, gradients, path)


def test_the_rate_rises_then_falls() -> None:
    recipe = Recipe(steps=100, rate=1.0, warm_up=0.1, final_share=0.05)
    rates = [recipe.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] == pytest.approx(0.05, abs=0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_gradient_is_clipped_where_asked_to() -> None:
    tensors, gradients = problem()
    recipe = Recipe(steps=1, rate=0.1, clip=1e-12, decay=0.0)
    train(tensors, gradients, recipe, checkpoint=None, identity="", track=silent, team=Team())
    assert tensors["weight"].abs().max() < 0.1


def test_a_batch_is_shared_evenly_or_refused() -> None:
    rows = list(range(6))
    assert [Team(3, rank).part(rows) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(SettingError, match="4 processes"):
        Team(4).part(rows)


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import make
from thrifty.moe.job import MoeJob
from thrifty.moe.methods.tomoe import Tomoe
from thrifty.moe.text import Corpus
from thrifty.moe.train import Team
ids = torch.randint(2, 97, (44, 32), generator=torch.Generator().manual_seed(2))
steps = int(sys.argv[2])
job = MoeJob.of(make(), Corpus(("r",), (ids[:40],), ids[40:]), 0.5, steps=steps, batch=2, calibration=8,
                checkpoint=Path(sys.argv[1] + ".state") if len(sys.argv) > 3 else None)
team = Team.here()
plan = Tomoe(num_experts=4, settle=1.0, balance=0.0, rate=0.01).plan(job)
plan.save(Path(sys.argv[1] + str(team.rank)))
"""


def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("sharing", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]], ids=["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(sharing: list[str], tmp_path: Path) -> None:
    from thrifty.plan import Plan

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", *sharing]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", "2"]
    for count, start in ((1, [sys.executable]), (2, launch)):
        command = [*start, str(script(tmp_path)), str(tmp_path / f"plan{count}."), "6"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr
    one = Plan.load(tmp_path / "plan1.0")
    first, second = (Plan.load(tmp_path / f"plan2.{rank}") for rank in range(2))
    assert first == second
    for name, kept in one.keep.items():
        assert (kept != first.keep[name]).float().mean() < 0.02  # sums in another order may swap channels that tie
    for name, router in one.evidence.items():
        if name.endswith(".router"):
            assert torch.allclose(router, first.evidence[name], atol=1e-3)
            assert torch.equal(first.evidence[name], second.evidence[name])


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    import time

    from thrifty.plan import Plan

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script(tmp_path)), str(tmp_path / "plan"), "400", "checkpoint"]
    state = tmp_path / "plan.state"
    running = subprocess.Popen(command, env=environment)
    for _ in range(600):
        if state.exists():
            break
        time.sleep(0.2)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert state.exists()
    assert not (tmp_path / "plan0").exists()
    subprocess.run(command, env=environment, check=True, timeout=240)
    resumed = Plan.load(tmp_path / "plan0")
    subprocess.run([*command[:2], str(tmp_path / "whole"), "400"], env=environment, check=True, timeout=240)
    whole = Plan.load(tmp_path / "whole0")
    assert resumed == whole
    assert all(torch.equal(value, whole.evidence[name]) for name, value in resumed.evidence.items())


def test_what_gets_no_gradient_does_not_move() -> None:
    one, two = (torch.ones(3, requires_grad=True) for _ in range(2))

    def gradients(step: int) -> dict[str, Tensor]:
        value = one.square().sum() + (two.square().sum() if step < 4 else 0)
        seen.append(two.detach().clone())
        value.backward()
        return {"kl": value.detach()}

    seen: list[Tensor] = []
    run({"one": one, "two": two}, gradients)
    assert not torch.equal(seen[0], seen[4])
    assert torch.equal(seen[4], seen[-1])
