"""A run trains, is stopped at any step, and goes on as if it had not been."""

import copy
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import QUICK, fresh

from thrifty.errors import DataError, SettingError
from thrifty.prune import checkpoint
from thrifty.prune.job import PruneJob
from thrifty.prune.methods.ato import Ato
from thrifty.prune.methods.magnitude import Magnitude
from thrifty.prune.run import WHOLE, Cycle, Run
from thrifty.prune.unpruned import Unpruned

PROGRAM = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from thrifty.prune import images
from thrifty.prune.job import PruneJob
from thrifty.prune.methods.ato import Ato
from thrifty.prune.models import ResNet
from thrifty.prune.training import Training

torch.set_num_threads(1)
torch.manual_seed(0)
whole = images.load("digits")
found = replace(whole, train=whole.train.take(torch.arange(320)))
training = Training(epochs=3, batch_size=32, learning_rate=0.2, holdout=0.1, save_seconds=0)
folder, resume = Path(sys.argv[1]), sys.argv[2] == "resume"
job = PruneJob.of(ResNet([1, 1], [8, 12]), found, "flops=50%", training, folder=folder, resume=resume)
print("begun", flush=True)
plan = Ato().plan(job)
torch.save([job.model.state_dict(), plan.keep], folder / "result.pt")
"""


class Stop(Exception):
    """What the tests raise between two steps."""


def stopped(job: PruneJob, method: object, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a method and break it off after so many steps, with its state kept at each."""
    step = Run.step

    def counted(run: Run, cycle: Cycle = WHOLE):
        if run.done >= after:
            raise Stop
        return step(run, cycle)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", counted)
        with pytest.raises(Stop):
            method.plan(job)


@pytest.mark.parametrize("method", [Ato(), Ato(recipe="published"), Magnitude()], ids=["ato", "published", "magnitude"])
@pytest.mark.parametrize("after", [1, 8, 11, 17, 29])
def test_a_run_that_is_stopped_after_any_step_ends_as_if_it_had_not_been(
    method, after: int, made_job: PruneJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fresh(made_job)
    plan = method.plan(whole)
    always = replace(QUICK, save_seconds=-1.0)
    stopped(fresh(made_job, training=always, folder=tmp_path), method, after, monkeypatch)
    again = fresh(made_job, training=always, folder=tmp_path, resume=True)
    assert method.plan(again) == plan
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name
    timeless = [[{**line, "seconds": 0} for line in job.history] for job in (again, whole)]
    assert timeless[0] == timeless[1]


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_bit_by_bit(tmp_path: Path) -> None:
    def start(folder: Path, how: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", PROGRAM, folder, how], stdout=subprocess.PIPE, text=True)

    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert start(tmp_path / "whole", "new").wait(120) == 0
    killed, how, kills = tmp_path / "killed", "new", 0
    while not (killed / "result.pt").exists() and kills < 20:
        process = start(killed, how)
        assert process.stdout is not None
        process.stdout.readline()
        if kills < 2:
            seen = (killed / checkpoint.STATE).stat().st_mtime_ns if how == "resume" else 0
            while not (killed / checkpoint.STATE).exists() or (killed / checkpoint.STATE).stat().st_mtime_ns == seen:
                time.sleep(0.001)
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait(120)
        how = "resume"
    assert kills == 2
    results = [torch.load(tmp_path / name / "result.pt", weights_only=True) for name in ("whole", "killed")]
    for part, other in zip(*results, strict=True):
        assert all(torch.equal(part[name], other[name]) for name in part)


def test_ctrl_c_keeps_the_state_of_the_last_whole_step(made_job: PruneJob, tmp_path: Path) -> None:
    job = fresh(made_job, folder=tmp_path)
    with Run(job, Unpruned()) as run:
        steps = run.steps()
        while next(steps).number < 7:
            pass
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            next(steps)
    with Run(replace(job, resume=True), Unpruned()) as run:
        assert run.done == 7
        run.train()
        assert run.done == run.num_steps


def test_a_run_is_not_continued_with_other_settings(made_job: PruneJob, tmp_path: Path) -> None:
    job = fresh(made_job, folder=tmp_path)
    Unpruned().plan(job)
    with pytest.raises(SettingError, match=r"seed: 0 then, 1 now"):
        Unpruned().plan(fresh(made_job, folder=tmp_path, resume=True, seed=1))
    with pytest.raises(SettingError, match="method"):
        Magnitude().plan(fresh(made_job, folder=tmp_path, resume=True))


def test_where_no_run_is_none_goes_on(made_job: PruneJob, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without --resume"):
        Unpruned().plan(fresh(made_job, folder=tmp_path, resume=True))


def test_a_loss_that_is_no_number_is_told_and_the_last_good_state_stays(made_job: PruneJob, tmp_path: Path) -> None:
    wild = replace(QUICK, learning_rate=1e12)
    job = fresh(made_job, training=wild, folder=tmp_path)
    with pytest.raises(DataError, match="use a learning rate below"):
        Unpruned().plan(job)
    assert not checkpoint.exists(tmp_path)  # what came before was never kept, and what is broken is not


def test_every_epoch_leaves_a_line_in_the_log(made_job: PruneJob, tmp_path: Path) -> None:
    job = fresh(made_job, folder=tmp_path)
    Ato().plan(job)
    lines = [json.loads(line) for line in (tmp_path / checkpoint.LOG).read_text().splitlines()]
    assert lines == job.history
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(line["kept"] <= 1.01 * line["target"] for line in lines[1:])
    assert lines[-1]["phase"] == "dense"


def test_the_learning_rate_rises_and_falls_once_in_each_cycle(made_job: PruneJob) -> None:
    with Run(fresh(made_job), Unpruned()) as run:
        first = [step.learning_rate for step in run.steps(0.5, Cycle(0.0, 0.5))]
        second = [step.learning_rate for step in run.steps(1.0, Cycle(0.5, 1.0, 0.5))]
    for rates, peak in ((first, 0.05), (second, 0.025)):  # 0.2 for a batch of 128 is 0.05 for one of 32
        top = rates.index(max(rates))
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert 0.7 * peak < max(rates) <= peak
        assert rates[-1] < 0.05 * peak


def test_held_out_images_are_not_trained_on_until_they_are_given_back(made_job: PruneJob) -> None:
    with Run(fresh(made_job), Unpruned()) as run:
        run.hold_out()
        for step in run.steps():
            numbers = set(run.epoch_draw[:, 0].tolist())
            if step.epoch < 2:
                assert not numbers & set(run.holdout.tolist())
            if step.epoch == 1:
                run.give_back()
        assert numbers >= set(run.holdout.tolist())


def test_the_network_that_the_job_holds_is_changed_only_by_the_plan(made_job: PruneJob) -> None:
    job = fresh(made_job)
    before = copy.deepcopy(job.model.state_dict())
    with Run(job, Unpruned()) as run:
        run.train()
        assert all(torch.equal(tensor, before[name]) for name, tensor in job.model.state_dict().items())
        run.plan()
    assert not torch.equal(job.model.stem.weight, before["stem.weight"])


def test_random_numbers_of_the_caller_are_not_touched(made_job: PruneJob) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    Unpruned().plan(fresh(made_job))
    assert torch.equal(torch.rand(1), expected)
