"""Magnitude pruning: the same share of every layer, the smallest filters first (Li et al., 2017, arXiv:1608.08710)."""

from dataclasses import dataclass

from thrifty.plan import Plan
from thrifty.prune.job import PruneJob, ranks_within, weights_of
from thrifty.prune.run import Cycle, Run


@dataclass(frozen=True)
class Magnitude:
    """Train for the share `before` of the epochs, keep the channels whose weights have the largest norm, and train on.

    The learning rate falls to 0 before the cut, and again after it from `peak` times its height.
    """

    power: float = 1.0
    before: float = 0.6
    peak: float = 0.5

    def plan(self, job: PruneJob) -> Plan:
        """Train, cut, train on."""
        with Run(job, self) as run:
            run.train(self.before, Cycle(0.0, self.before))
            if run.keep is None:
                weights = weights_of(run.model, job.groups)
                run.cut(job.best(ranks_within({name: one.norm(self.power, dim=1) for name, one in weights.items()})))
            run.train(1.0, Cycle(self.before, 1.0, self.peak))
            return run.plan()
