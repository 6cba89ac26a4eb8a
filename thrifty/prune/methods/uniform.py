"""The same share of every layer's channels, trained from scratch: what every pruning method has to beat."""

from dataclasses import dataclass

import torch

from thrifty.plan import Plan
from thrifty.prune.job import PruneJob, ranks_within
from thrifty.prune.run import Run


@dataclass(frozen=True)
class Uniform:
    """A narrower network from the first step on (the baseline of Liu et al., ICLR 2019, arXiv:1810.05270)."""

    def plan(self, job: PruneJob) -> Plan:
        """Cut at once, then train for all epochs."""
        first_to_last = {group.name: -torch.arange(group.size) for group in job.groups}
        with Run(job, self) as run:
            if run.keep is None:
                run.cut(job.best(ranks_within(first_to_last)))
            run.train()
            return run.plan()
