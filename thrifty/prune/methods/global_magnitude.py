"""Global MP: the smallest channels go, whatever their layer (Gupta et al., 2022, arXiv:2209.14624)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.plan import Plan
from thrifty.prune.job import PruneJob, weights_of
from thrifty.prune.run import Cycle, Run


@dataclass(frozen=True)
class GlobalMagnitude:
    """Train for the share `before` of the epochs, rank all channels by the size of their weights, cut, and train on.

    The size is the root of the mean square, so that layers with many inputs do not win; every layer keeps the share
    `least` (the paper's minimum threshold). The learning rate falls to 0 before the cut, and again after it from `peak`
    times its height.
    """

    least: float = 0.05
    before: float = 0.6
    peak: float = 0.5

    def plan(self, job: PruneJob) -> Plan:
        """Train, cut, train on."""
        with Run(job, self) as run:
            run.train(self.before, Cycle(0.0, self.before))
            if run.keep is None:
                weights = weights_of(run.model, job.groups)
                run.cut(job.best({name: self._scores(one.square().mean(1).sqrt()) for name, one in weights.items()}))
            run.train(1.0, Cycle(self.before, 1.0, self.peak))
            return run.plan()

    def _scores(self, sizes: Tensor) -> Tensor:
        """The sizes, with the largest ones of the layer beyond all others."""
        safe = sizes.argsort(descending=True, stable=True)[: math.ceil(self.least * len(sizes))]
        return sizes.index_fill(0, safe, float(torch.finfo(sizes.dtype).max))
