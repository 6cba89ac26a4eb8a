"""DepGraph's group norms with sparse learning: small groups are pushed down, then cut (Fang et al., CVPR 2023)."""

from dataclasses import dataclass

import torch

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.plan import Plan
from thrifty.prune.job import PruneJob
from thrifty.prune.layout import Layout
from thrifty.prune.project import Projection
from thrifty.prune.run import Cycle, Run


@dataclass(frozen=True)
class GroupNorm:
    """Train (to the share `dense` of the steps), train with the regulariser (to `sparse`), cut, and train on.

    The regulariser pulls every part to 0 with `strength` times 2^(alpha (max - norm) / (max - min)), norms within the
    group (the paper's equation 4, alpha 4); it is applied after the step, as decoupled weight decay is. Cut are the
    parts with the smallest norm in terms of the mean of their group. The learning rate falls to 0 at `dense` and again
    at `sparse`, and from `peak` times its height after the cut.
    """

    dense: float = 0.4
    sparse: float = 0.7
    strength: float = 5e-4
    alpha: float = 4.0
    peak: float = 0.5

    def __post_init__(self) -> None:
        """Refuse an order that is none."""
        settings.check(self)
        if not 0 <= self.dense <= self.sparse < 1:
            raise SettingError(f"{self}: use 0 <= dense <= sparse < 1")

    def plan(self, job: PruneJob) -> Plan:
        """Train, push down, cut, train on."""
        layout = Layout.of(job.groups)
        with Run(job, self) as run:
            run.train(self.dense, Cycle(0.0, self.dense))
            if run.keep is None:
                projection = Projection(run.model, job.groups)
                group = layout.group_of_part(job.device)
                for step in run.steps(self.sparse, Cycle(self.dense, self.sparse, self.peak)):
                    pull = 2 ** (self.alpha * _smallness(projection.norms(), group))
                    projection.scale(1 - step.learning_rate * self.strength * pull)
                norms = layout.named(projection.norms())
                run.cut(job.best({name: norm / norm.mean().clamp_min(1e-12) for name, norm in norms.items()}))
            run.train(1.0, Cycle(self.sparse, 1.0, self.peak))
            return run.plan()


def _smallness(norms: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """0 for the largest part of each group, 1 for the smallest."""
    count = int(group[-1]) + 1
    high = norms.new_zeros(count).scatter_reduce(0, group, norms, "amax", include_self=False)
    low = norms.new_zeros(count).scatter_reduce(0, group, norms, "amin", include_self=False)
    return (high[group] - norms) / (high - low)[group].clamp_min(1e-12)
