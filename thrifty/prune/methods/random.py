"""Channels by chance: what a choice is worth (Mittal et al., WACV 2018, arXiv:1801.10447)."""

from dataclasses import dataclass

import torch

from thrifty.plan import Plan
from thrifty.prune.batches import mixed
from thrifty.prune.job import PruneJob
from thrifty.prune.run import Cycle, Run


@dataclass(frozen=True)
class Random:
    """Train for the share `before` of the epochs, drop channels by chance, and train the rest.

    The learning rate falls to 0 before the cut, and again after it from `peak` times its height.
    """

    before: float = 0.6
    peak: float = 0.5

    def plan(self, job: PruneJob) -> Plan:
        """Train, cut, train on."""
        with Run(job, self) as run:
            run.train(self.before, Cycle(0.0, self.before))
            if run.keep is None:
                generator = torch.Generator().manual_seed(mixed(job.seed, -4))
                run.cut(job.best({one.name: torch.rand(one.size, generator=generator) for one in job.groups}))
            run.train(1.0, Cycle(self.before, 1.0, self.peak))
            return run.plan()
