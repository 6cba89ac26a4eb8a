"""ATO inside a training loop: call it after each step, and the network becomes small while it trains.

    pruning = Ato().loop(model, optimizer, example, keep="flops=45%", num_steps=epochs * len(loader))
    for epoch in range(epochs):
        for x, y in loader:
            criterion(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            if pruning.wants_controller_step:
                pruning.controller_step(*next(held_out))
            if pruning.after_step():
                model = pruning.model
        pruning.epoch_end()

The optimiser, the schedule, autocast and the loss stay the caller's. Four phases follow each other: in the warm-up the
network trains alone; in the search a controller learns what to keep, and what it would drop is made smaller; in the
shrink phase the decision is final and what was dropped goes to 0; then it is cut out, optimiser state and all, and the
dense phase trains a smaller network. `after_step` is true where that has just happened.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from thrifty.errors import DataError, SettingError
from thrifty.prune import ranks
from thrifty.prune.apply import shrink
from thrifty.prune.coupling import Coupling, Group
from thrifty.prune.evaluate import evaluating
from thrifty.prune.gating import Reads, gated, masked, zero
from thrifty.prune.project import Projection
from thrifty.prune.search import Search
from thrifty.replay import Replay, uncached_autocast

Phase = Literal["warm-up", "search", "shrink", "dense"]
Criterion = Callable[[Any, Any], Tensor]
Choose = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Make the decision that meets the budget, from the scores of all parts."""


@dataclass(frozen=True)
class Phases:
    """At which share of all steps each phase ends, and how many controller steps the search has.

    `every` sets a controller step so many steps apart, whatever their number. Where `is_removed` is false the dropped
    parts are held at 0 and the network keeps its size to the end, as published; then `late` is the share of the steps
    from which on they are made smaller, by `strength` times the learning rate and, from the end of the search on, by
    `strength_after`.
    """

    warm_up: float = 0.05
    search: float = 0.3
    shrink: float = 0.35
    controller_steps: int = 200
    every: int = 0
    is_removed: bool = True
    late: float = 0.0
    strength: float = 0.0
    strength_after: float = 0.0

    def __post_init__(self) -> None:
        """Raise `SettingError` where the phases are in no order."""
        if not 0 <= self.warm_up < self.search <= self.shrink <= 1:
            raise SettingError(
                f"the phases end at {self.warm_up:g} (warm-up), {self.search:g} (search) and {self.shrink:g} (shrink) "
                "of the steps; they must rise, from 0 to 1 at most"
            )

    def controller_steps_of(self, num_steps: int) -> int:
        """How many controller steps the search has in a training of so many steps."""
        length = max(round(self.search * num_steps) - round(self.warm_up * num_steps), 1)
        return max(length // self.every, 1) if self.every else min(self.controller_steps, length)


class Loop:
    """ATO's part of a training loop. Make one with `Ato().loop(...)`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        coupling: Coupling,
        groups: tuple[Group, ...],
        search: Search,
        phases: Phases,
        num_steps: int,
        choose: Choose,
        criterion: Criterion,
    ) -> None:
        """Begin at step 0 of `num_steps`."""
        if num_steps < 10:
            raise SettingError(f"{num_steps} steps are too few for four phases; train for at least 10")
        self.model, self.optimizer, self.coupling, self.groups = model, optimizer, coupling, groups
        self.search, self.phases, self.num_steps = search, phases, num_steps
        self.choose, self.criterion = choose, criterion
        self.done = 0
        self.keep: dict[str, Tensor] | None = None
        self.is_cut = False
        self.projection = Projection(ranks.inner(model), groups)
        self._group = search.layout.group_of_part(self.projection.device)
        self._kept = torch.ones(search.layout.num_parts, device=self.projection.device)
        self._controller: Callable[..., Tensor] = self._learn

    @property
    def phase(self) -> Phase:
        """What the next step belongs to."""
        if self.is_cut or self.done >= self._step_at(self.phases.shrink):
            return "dense"
        if self.done < self._step_at(self.phases.warm_up):
            return "warm-up"
        return "search" if self.done < self._step_at(self.phases.search) else "shrink"

    @property
    def wants_controller_step(self) -> bool:
        """Whether `controller_step` is due."""
        if self.phase != "search":
            return False
        place, length = self.done - self._step_at(self.phases.warm_up), self._search_steps
        count = self.phases.controller_steps_of(self.num_steps)
        return place * count // length != (place - 1) * count // length

    def controller_step(self, inputs: Any, targets: Any, criterion: Criterion | None = None) -> Tensor:
        """Let the controller learn from one batch that the weights do not train on; return the loss of the task.

        `inputs` is what the network takes, a tuple where it takes several. The network is in eval mode for it. Call it
        within the autocast of the weights' forward pass.
        """
        self.search.prepare((self.done - self._step_at(self.phases.warm_up)) / self._search_steps)
        loss = self._controller(inputs, targets) if criterion is None else self._learn(inputs, targets, criterion)
        if self.phases.is_removed:
            self._keep_only(self.search.mask())
        return loss

    def replay_controller(self) -> None:
        """On a GPU, replay the controller's steps and the projection from CUDA graphs from now on.

        For inputs and targets that are tensors of the same shapes every time, always under the same autocast, and for a
        criterion that waits for no value. Several ranks go on as before.
        """
        if ranks.count() == 1:
            self._controller = Replay(self._learn, self.projection.device)
            self.projection.replay()

    @cached_property
    def _reads(self) -> Reads:
        return Reads(ranks.inner(self.model), self.groups)

    def _learn(self, inputs: Any, targets: Any, criterion: Criterion | None = None) -> Tensor:
        network, measure = ranks.inner(self.model), criterion or self.criterion

        def task_loss(gates: Mapping[str, Tensor]) -> Tensor:
            weights = self._reads.gated(self.search.layout.flat(gates))
            return measure(functional_call(network, weights, _arguments(inputs)), targets)

        with evaluating(network), uncached_autocast(self.projection.device):
            return self.search.learn(task_loss)

    def _keep_only(self, kept: Tensor) -> None:
        """What is to stay from now on, as the first rank has it."""
        self._kept = ranks.of_first(kept.to(self._kept))
        self.projection.drop(self._kept)

    def after_step(self) -> bool:
        """Call it after each step of the optimiser. True where the network has just been cut to its final size.

        From then on `model` is another wrapper where the given one was for several ranks.
        """
        phase, self.done = self.phase, self.done + 1
        if phase == "search":
            self._make_smaller()
            if self.done >= self._step_at(self.phases.search):
                self._decide()
        elif phase == "shrink":
            self._make_smaller()
        if self.keep is None or self.is_cut:
            return False
        if self.phases.is_removed and self.done >= self._step_at(self.phases.shrink):
            return self._cut()
        if not self.phases.is_removed and phase == "dense":
            self._make_smaller()
            return self._cut() if self.done >= self.num_steps else False
        return False

    def epoch_end(self, measure: Callable[[nn.Module], float] | None = None) -> dict[str, Any]:
        """Call it after each epoch: how far the search is, for the log.

        `measure` tells the accuracy of a network on images it does not train on: then the facts hold that of the
        whole network and that of the network without what is to be dropped.
        """
        network = ranks.inner(self.model)
        if self.phase == "search" and not self.phases.is_removed:
            self._keep_only(self.search.sample())  # published: one sample an epoch
        facts: dict[str, Any] = {"phase": self.phase, "kept": self.spent, "target": float(self.search.budget.limit)}
        if self.is_cut:
            return facts
        facts["longest_dropped"] = float((self.projection.norms() * (1 - self._kept)).max())
        if measure is not None and self.phase != "warm-up":
            facts["accuracy_whole"] = measure(network)
            with masked(network, self.groups, self.mask):
                facts["accuracy_masked"] = measure(network)
        return facts

    @property
    def mask(self) -> dict[str, Tensor]:
        """What would be kept if the search ended now; what is kept, once it has."""
        return self.keep if self.keep is not None else self.search.layout.named(self._kept)

    @property
    def spent(self) -> float:
        """What `mask` costs, in the unit of the budget."""
        return self.search.budget.spent(self.mask)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, but for the network and its optimiser."""
        return {
            "done": self.done,
            "keep": self.keep,
            "is_cut": self.is_cut,
            "kept": self._kept,
            "search": self.search.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. A network that was cut by then and is still whole is cut here: load the
        states of the network and its optimiser afterwards."""
        if state["is_cut"] and self._is_whole():
            shrink(ranks.inner(self.model), self.coupling, state["keep"], self.optimizer)
            self.model = ranks.rewrapped(self.model)
        self.done, self.is_cut, self.keep = state["done"], state["is_cut"], state["keep"]
        self._kept = state["kept"].to(self._kept.device)
        if not self.is_cut:
            self.projection.drop(self._kept)
        self.search.load_state_dict(state["search"])

    def _is_whole(self) -> bool:
        sizes = {name: tuple(one.shape) for name, one in ranks.inner(self.model).named_parameters()}
        whole = {name: tuple(int(one.length({})) for one in each) for name, each in self.coupling.parameters.items()}
        return all(sizes[name] == size for name, size in whole.items() if name in sizes)

    @property
    def _search_steps(self) -> int:
        return max(self._step_at(self.phases.search) - self._step_at(self.phases.warm_up), 1)

    def _step_at(self, share: float) -> int:
        return round(share * self.num_steps)

    def _make_smaller(self) -> None:
        """One projection step of the parts that the mask drops."""
        if self.phases.is_removed:
            remaining = max(self._step_at(self.phases.shrink) - self.done + 1, 1)
            self.projection.shorten(1 / remaining)
            return
        if self.done < self._step_at(self.phases.late):
            return
        one, dropped = self.phases, 1 - self._kept
        strength = one.strength if self.done < self._step_at(one.search) else one.strength_after
        of_group = torch.zeros(len(self.groups), device=dropped.device).index_add_(0, self._group, dropped)
        share = (of_group / dropped.sum().clamp_min(1))[self._group]
        rate = self.optimizer.param_groups[0]["lr"]  # a number, or a tensor, which is not waited for
        self.projection.shrink(strength * rate * share * dropped)

    def _decide(self) -> None:
        """The search is over: what stays, within the budget."""
        if not bool(self.search.average.isfinite().all()):
            raise DataError(
                "the loss is no number any more, nor is what the controller learnt; lower the learning rate"
            )
        keep = self.choose(self.search.scores())
        self._keep_only(self.search.layout.flat(keep))
        self.keep = {name: kept.cpu() for name, kept in self.search.layout.named(self._kept).items()}

    def _cut(self) -> bool:
        """Take out what was dropped, which is 0 by now, with its optimiser state."""
        assert self.keep is not None
        network = ranks.inner(self.model)
        zero(network, self.groups, self.keep, self.optimizer)
        shrink(network, self.coupling, self.keep, self.optimizer)
        self.model, self.is_cut = ranks.rewrapped(self.model), True
        self._controller = self._learn  # what was captured goes with the whole network
        return True


def gated_loss(
    network: nn.Module,
    groups: Sequence[Group],
    gates: Mapping[str, Tensor],
    inputs: Any,
    targets: Any,
    criterion: Criterion,
) -> Tensor:
    """The loss of a batch where every part is multiplied by its gate; differentiable in the gates."""
    return criterion(functional_call(network, gated(network, groups, gates), _arguments(inputs)), targets)


def _arguments(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)
