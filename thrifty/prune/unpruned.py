"""The whole network, trained as every method trains it: what pruning is compared with."""

from dataclasses import dataclass

from thrifty.plan import Plan
from thrifty.prune.job import PruneJob
from thrifty.prune.run import Run


@dataclass(frozen=True)
class Unpruned:
    """Nothing is dropped, whatever the budget."""

    def plan(self, job: PruneJob) -> Plan:
        """Train for all epochs; the plan keeps everything."""
        with Run(job, self) as run:
            run.train()
            return run.plan()
