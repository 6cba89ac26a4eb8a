"""ATO: a controller and the weights learn in turn what to keep; one training run (Wu et al., CVPR 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from thrifty import settings
from thrifty.budget import Budget
from thrifty.errors import SettingError
from thrifty.plan import Plan
from thrifty.prune import ranks
from thrifty.prune.cost import budget_of
from thrifty.prune.coupling import Coupling, coupling_of
from thrifty.prune.job import PruneJob, best
from thrifty.prune.layout import Layout
from thrifty.prune.loop import Criterion, Loop, Phases
from thrifty.prune.run import Run, Step
from thrifty.prune.search import Search, SearchSettings


@dataclass(frozen=True)
class Ato:
    """Train alone (warm-up), learn what to keep (search), make the rest 0 (shrink), cut it out and train on (dense).

    `warm_up`, `search` and `shrink` are the shares of all steps at which these phases end. The controller takes
    `controller_steps` steps during the search; the limit falls from the whole network to the budget, and `strength`
    tells how fast the weight of the budget in the controller's loss grows where too much is spent. Dropped parts lose
    such a share of their length with each step that they are 0 when the shrink phase ends; the network is then cut, and
    the rest of the training costs what the small one costs.

    `recipe` = published is the authors' code in its order and with its numbers: the full budget from the first step,
    soft gates, a controller step every 20 steps, a mask drawn once an epoch, a proximal step of strength 10, then 1000,
    and the whole network trained to the end. The decision is repaired to the budget in either recipe.
    """

    recipe: Literal["improved", "published"] = "improved"
    warm_up: float = 0.05
    search: float = 0.3
    shrink: float = 0.35
    controller_steps: int = 200
    strength: float = 8.0
    temperature: float = 0.4
    averaging: float = 0.95
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse values that do not exist."""
        settings.check(self)
        if not 0 <= self.averaging < 1:
            raise SettingError(f"Ato: averaging={self.averaging:g}; use 0 or more, below 1")
        self._phases()

    def plan(self, job: PruneJob) -> Plan:
        """Train the job's network and decide what stays. Raises `DataError` where the loss is no number any more."""
        with Run(job, self) as run:
            how = {"seed": job.seed, "round_to": job.round_to, "residual": job.residual}
            loop = self.loop_of(run.model, run.optimizer, job.coupling, job.budget, run.num_steps, **how)
            run.register("ato", loop)
            if job.training.is_replayed:
                loop.replay_controller()
            if loop.keep is None:
                run.hold_out()
            for step in run.steps():
                if loop.wants_controller_step:
                    with run.precision:
                        loop.controller_step(*run.held_out_batch())
                if loop.after_step():
                    run.adopt(loop.mask)
                if loop.phase == "dense":
                    run.give_back()
                if step.ends_epoch:
                    _note(job, run, loop, step)
            return run.plan()

    def loop(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example: tuple[Any, ...],
        keep: str,
        num_steps: int,
        *,
        seed: int = 0,
        round_to: int = 1,
        residual: bool = False,
        criterion: Criterion = cross_entropy,
    ) -> Loop:
        """ATO for a training loop of your own, of `num_steps` steps of the optimiser; see `thrifty.prune.loop`.

        `example` are inputs to capture the network with. Raises `ModelError` where it cannot be captured,
        `SettingError` where the budget cannot be reached or the model is spread over several ranks.
        """
        network = ranks.inner(model)
        coupling, device = coupling_of(network, example), next(network.parameters()).device
        budget = budget_of(keep, coupling, residual=residual, round_to=round_to, model=network, device=device)
        how = {"seed": seed, "round_to": round_to, "residual": residual}
        return self.loop_of(model, optimizer, coupling, budget, num_steps, **how, criterion=criterion)

    def loop_of(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        coupling: Coupling,
        budget: Budget,
        num_steps: int,
        *,
        seed: int = 0,
        round_to: int = 1,
        residual: bool = False,
        criterion: Criterion = cross_entropy,
    ) -> Loop:
        """As `loop`, where the groups and the budget are known."""
        groups = coupling.prunable(residual=residual)
        device, phases = next(model.parameters()).device, self._phases()
        search = Search(Layout.of(groups), budget, self._search(phases.controller_steps_of(num_steps)), device, seed)

        def choose(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return best(scores, budget, groups, round_to)

        return Loop(model, optimizer, coupling, groups, search, phases, num_steps, choose, criterion)

    def _search(self, num_steps: int) -> SearchSettings:
        """What the controller learns with. A short search, of fewer steps than asked for, takes longer steps."""
        one = SearchSettings(
            temperature=self.temperature,
            strength=self.strength,
            averaging=self.averaging,
            learning_rate=self.learning_rate * max(1.0, self.controller_steps / num_steps),
        )
        if self.recipe == "published":
            rate = self.learning_rate
            return replace(
                one,
                learning_rate=rate,
                is_annealed=False,
                has_pressure=False,
                is_soft=True,
                averaging=0.0,
                dead_zone=0.005,
            )
        return one

    def _phases(self) -> Phases:
        if self.recipe == "published":  # epochs 25, 50 and 125 of 245
            return Phases(0.1, 0.5, 0.5, every=20, is_removed=False, late=0.2, strength=10.0, strength_after=1000.0)
        return Phases(self.warm_up, self.search, self.shrink, self.controller_steps)


def _note(job: PruneJob, run: Run, loop: Loop, step: Step) -> None:
    """The facts of an epoch, for the log and the progress line."""
    step.facts |= loop.epoch_end(run.held_out_accuracy if run.is_held_out else None)
    one, mask = step.facts, loop.mask
    shares = [
        f"{limit.spent(mask) / whole:.1%} -> {limit.limit / whole:.1%}"
        for limit, whole in zip(job.budget.each, loop.search.whole, strict=True)
    ]
    told = f"{one['phase']} {', '.join(shares)}"
    if "accuracy_masked" in one:
        told += f", masked {one['accuracy_masked']:.1%} of {one['accuracy_whole']:.1%}"
    run.say(told)
