"""Two processes that share the frozen model (FSDP) compute what one computes, each holding half of the layers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from thrifty.moe.distill import is_spread
from thrifty.moe.job import MoeJob
from thrifty.moe.spread import spread
from thrifty.moe.train import Team

SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from conftest import make
from thrifty.moe import calibrate
from thrifty.moe.distill import hidden_states, is_spread
from thrifty.moe.job import MoeJob
from thrifty.moe.spread import spread
from thrifty.moe.text import Corpus
from thrifty.moe.train import Team
ids = torch.randint(2, 97, (44, 32), generator=torch.Generator().manual_seed(2))
whole = MoeJob.of(make(), Corpus(("r",), (ids[:40],), ids[40:]), 0.5, steps=1, batch=2, calibration=2)
team = Team.here()
assert team.is_sharing and team.size == 2, team
job = spread(whole, team)
assert is_spread(job.model) and not is_spread(whole.model)
for site, other in zip(job.sites, whole.sites, strict=True):
    parts = [(p.to_local().numel(), q.numel()) for p, q in zip(site.layer.parameters(), other.layer.parameters())]
    assert all(2 * part == all_ for part, all_ in parts), parts
with torch.no_grad():
    apart = (hidden_states(job.model, ids[:2]) - hidden_states(whole.model, ids[:2])).abs().max()
assert apart < 1e-5, apart
norms = {{}}
for one in (job, whole):
    calibrate.visit(one, lambda site, x, h: norms.setdefault(site.name, []).append(calibrate.column_norms(site)))
for pair in norms.values():
    assert all(type(norm) is torch.Tensor for norm in pair) and torch.equal(*pair)
print("shared")
"""


@pytest.mark.slow
def test_each_process_holds_half_and_computes_the_whole(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--use_fsdp"]
    launch += ["--fsdp_version", "2", "--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "script.py")], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("shared") == 2


def test_a_team_that_does_not_share_works_on_the_model_itself(job: MoeJob) -> None:
    assert spread(job, Team(2, 0)) is job
    assert not is_spread(job.model)
