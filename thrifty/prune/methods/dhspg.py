"""OTOv2's DHSPG: redundant parts are pulled down, and 0 once a step turns them round (Chen et al., ICLR 2023)."""

from dataclasses import dataclass

import torch

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.plan import Plan
from thrifty.prune.job import PruneJob, ranks_within
from thrifty.prune.layout import Layout
from thrifty.prune.project import Projection
from thrifty.prune.run import Run


@dataclass(frozen=True)
class Dhspg:
    """Dual half-space projected gradient.

    At the share `start` of the steps the parts with the smallest norm in their group are called redundant, as many as
    the budget asks for. Each of them, g, is from then on pulled to 0 by lambda in each step, where lambda is twice what
    the loss pulls the other way, within `strength` and ten times that; and where the new g lies outside the half-space
    <new, g> >= `epsilon` |g|^2 it is set to 0 for good. At `end` all that is redundant is cut out, 0 or not.
    """

    start: float = 1 / 6
    end: float = 0.5
    strength: float = 1e-3
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        """Refuse an order that is none."""
        settings.check(self)
        if not 0 <= self.start < self.end <= 1:
            raise SettingError(f"{self}: use 0 <= start < end <= 1")

    def plan(self, job: PruneJob) -> Plan:
        """Train, pull the redundant parts down, cut, train on."""
        layout = Layout.of(job.groups)
        with Run(job, self) as run:
            run.train(self.start)
            if run.keep is None:
                redundancy = _Redundancy(torch.ones(layout.num_parts, device=job.device))
                run.register("dhspg", redundancy)
                projection = Projection(run.model, job.groups)
                if redundancy.is_new:
                    keep = job.best(ranks_within(layout.named(projection.norms())))
                    redundancy.take(layout.flat(keep).to(job.device))
                old = [one.detach().clone() for one in projection.parameters]
                for step in run.steps(self.end):
                    self._pull(projection, old, redundancy.kept, step.learning_rate)
                    old = [one.detach().clone() for one in projection.parameters]
                run.cut(layout.named(redundancy.kept))
            run.train()
            return run.plan()

    def _pull(self, projection: Projection, old: list[torch.Tensor], kept: torch.Tensor, rate: float) -> None:
        """One step of the redundant parts, from `old` to what the optimiser made of them and a little shorter."""
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in projection.parameters]
        before = projection.dots(old, old).clamp_min(1e-16)
        along = projection.dots(gradients, old) / before.sqrt()
        strength = (-2 * along).clamp(self.strength, 10 * self.strength)
        now = projection.norms()
        shorter = (1 - rate * strength / now.clamp_min(1e-8)).clamp_min(0)
        turned = projection.dots(projection.parameters, old) * shorter
        factor = torch.where(turned < self.epsilon * before, 0.0, shorter)
        projection.scale(torch.where(kept > 0, 1.0, factor))


class _Redundancy:
    """Which parts are to stay; it is chosen once, also where the run goes on after a stop."""

    def __init__(self, kept: torch.Tensor) -> None:
        self.kept, self.is_new = kept, True

    def take(self, kept: torch.Tensor) -> None:
        self.kept, self.is_new = kept, False

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.take(state["kept"].to(self.kept.device))
