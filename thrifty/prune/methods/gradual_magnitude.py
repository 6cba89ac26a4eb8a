"""Gradual magnitude pruning: a little more goes at a time in training (Zhu and Gupta, 2017, arXiv:1710.01878)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.plan import Plan
from thrifty.prune.job import PruneJob, ranks_within
from thrifty.prune.layout import Layout
from thrifty.prune.project import Projection
from thrifty.prune.run import Run


@dataclass(frozen=True)
class GradualMagnitude:
    """From the share `start` of the steps to the share `end`, the smallest channels of every layer are set to 0.

    What may remain falls as (1 - progress)^3 to the budget, in `stages` stages; what is 0 stays 0. At `end` the zeros
    are cut out.
    """

    start: float = 0.1
    end: float = 0.5
    stages: int = 100

    def __post_init__(self) -> None:
        """Refuse an order that is none."""
        settings.check(self)
        if not 0 <= self.start < self.end <= 1 or self.stages < 1:
            raise SettingError(f"{self}: use 0 <= start < end <= 1 and at least one stage")

    def plan(self, job: PruneJob) -> Plan:
        """Prune while training, then train what is left."""
        layout = Layout.of(job.groups)
        whole = job.budget.spent({name: torch.ones(size) for name, size in layout.sizes.items()})
        with Run(job, self) as run:
            if run.keep is None:
                projection = Projection(run.model, job.groups)
                kept = (projection.norms() > 0).float()  # what went before a stop is 0
                for step in run.steps(self.end):
                    before, stage = (self._stage(number / run.num_steps) for number in (step.number - 1, step.number))
                    if stage > before:
                        left = (1 - stage / self.stages) ** 3
                        budget = replace(job.budget, limit=job.budget.limit + (whole - job.budget.limit) * left)
                        kept = layout.flat(budget.best(self._scores(projection, layout))).to(kept)
                    projection.scale(kept)
                run.cut(job.best(self._scores(projection, layout)))
            run.train()
            return run.plan()

    def _stage(self, share: float) -> int:
        """How many stages are over when this share of the steps is."""
        return int(max(share - self.start, 0) / (self.end - self.start) * self.stages)

    def _scores(self, projection: Projection, layout: Layout) -> dict[str, Tensor]:
        return ranks_within(layout.named(projection.norms().cpu()))
