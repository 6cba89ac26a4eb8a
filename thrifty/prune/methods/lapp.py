"""LAPP: a learnt threshold for each layer on the size of its channels (Zhai et al., 2023, arXiv:2309.14157)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.gates import straight_through
from thrifty.plan import Plan
from thrifty.prune.evaluate import evaluating
from thrifty.prune.job import PruneJob
from thrifty.prune.layout import Layout
from thrifty.prune.loop import gated_loss
from thrifty.prune.project import Projection
from thrifty.prune.run import Run


@dataclass(frozen=True)
class Lapp:
    """Train; from the share `start` of the steps to the share `end`, thresholds rise until the budget is met; cut.

    A channel is kept where its norm, in terms of the mean of its layer, is above the threshold of the layer. Thresholds
    learn every `every` steps from the loss of the task with these gates on held-out images plus `strength` times the
    distance from the budget, which tightens as they learn. What is below its threshold is made smaller and 0 at `end`.
    The paper also adds a light bypass to every pruned layer; here the network is pruned as it is.
    """

    start: float = 0.05
    end: float = 0.4
    every: int = 10
    strength: float = 8.0
    temperature: float = 0.1
    learning_rate: float = 5e-3

    def __post_init__(self) -> None:
        """Refuse an order that is none."""
        settings.check(self)
        if not 0 <= self.start < self.end <= 1 or self.every < 1:
            raise SettingError(f"{self}: use 0 <= start < end <= 1, and every of at least 1")

    def plan(self, job: PruneJob) -> Plan:
        """Train, learn the thresholds on the way, cut, train on."""
        with Run(job, self) as run:
            if run.keep is None:
                run.hold_out()
                run.train(self.start)
                projection, layout = Projection(run.model, job.groups), Layout.of(job.groups)
                thresholds = _Thresholds(layout, job.device, self.learning_rate)
                run.register("lapp", thresholds)
                first, last = (round(share * run.num_steps) for share in (self.start, self.end))
                for step in run.steps(self.end):
                    margin = thresholds.margin(projection.norms())
                    if step.number % self.every == 0:
                        self._learn(thresholds, margin, run, job, (step.number - first) / (last - first))
                    remaining = max(last - step.number + 1, 1)
                    projection.scale(1 - (margin < 0).float() / remaining)
                run.give_back()
                run.cut(job.best(layout.named(thresholds.margin(projection.norms()).detach())))
            run.train()
            return run.plan()

    def _learn(self, thresholds: "_Thresholds", margin: Tensor, run: Run, job: PruneJob, progress: float) -> None:
        """One step of the thresholds."""
        gates = thresholds.layout.named(straight_through(torch.sigmoid(margin / self.temperature)))
        whole = job.budget.spent({name: torch.ones_like(gate) for name, gate in gates.items()})
        limit = whole * (job.budget.limit / whole) ** min(progress / 0.7, 1)
        with run.precision, evaluating(run.model):
            loss = gated_loss(run.model, job.groups, gates, *run.held_out_batch(), cross_entropy)
        loss = loss + self.strength * replace(job.budget, limit=limit).penalty(gates)
        thresholds.step(torch.autograd.grad(loss, thresholds.values)[0])


class _Thresholds:
    """One threshold a group, and its optimiser."""

    def __init__(self, layout: Layout, device: torch.device, learning_rate: float) -> None:
        self.layout, self.group = layout, layout.group_of_part(device)
        self.values = torch.zeros(len(layout.sizes), device=device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.values], learning_rate)

    def margin(self, norms: Tensor) -> Tensor:
        """By how much each part's norm, in terms of the mean of its group, is above the threshold of the group."""
        mean = norms.new_zeros(len(self.values)).scatter_reduce(0, self.group, norms, "mean", include_self=False)
        return norms / mean.clamp_min(1e-12)[self.group] - self.values[self.group]

    def step(self, gradient: Tensor) -> None:
        self.values.grad = gradient
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values.detach(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.values.copy_(state["values"])
        self.optimizer.load_state_dict(state["optimizer"])
