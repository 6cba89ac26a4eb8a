"""The same share of every layer, from the first step."""

from conftest import fresh

from thrifty.prune.job import PruneJob
from thrifty.prune.methods.uniform import Uniform
from thrifty.prune.run import Run


def test_every_layer_keeps_its_first_channels_and_the_same_share(made_job: PruneJob) -> None:
    plan = Uniform().plan(fresh(made_job))
    shares = [float(kept.mean()) for kept in plan.keep.values()]
    assert max(shares) - min(shares) < 0.2
    for kept in plan.keep.values():
        assert kept.tolist() == sorted(kept.tolist(), reverse=True)


def test_only_the_narrow_network_is_trained(made_job: PruneJob, monkeypatch) -> None:
    sizes, step = [], Run.step

    def counted(run: Run, *given):
        sizes.append(sum(one.numel() for one in run.model.parameters()))
        return step(run, *given)

    monkeypatch.setattr(Run, "step", counted)
    Uniform().plan(fresh(made_job))
    assert len(set(sizes)) == 1
    assert sizes[0] < sum(one.numel() for one in made_job.model.parameters())
