"""Which parts to keep, learnt: the controller of ATO, its loss, and the decision at the end.

Published, the loss is the task's on the network with gates, plus `strength` times |log(cost / limit)| (Wu et al., CVPR
2024, equation 5 in its two-sided form), and the limit is the budget from the first step on. Two things go wrong there.
The controller judges by a broken network for most of the search; and its optimiser, Adam, divides by the size of the
gradients, so that a budget term which is much steeper than the task makes all logits fall alike, whatever the task
says.

Here the limit goes from the whole network to the budget, by the same factor in each step, over the first part of the
search; and the weight of log(cost / limit) is a Lagrange multiplier, the `pressure`. It grows while too much is spent
and falls while too little is, until what a part costs outweighs what it is worth for as many parts as must go. Where
the budget is several limits, each has a pressure of its own.

A step has two halves. `prepare` draws the noise and sets what changes from step to step, all of it in tensors that stay
where they are; `learn` waits for no value and reads only these, so a CUDA graph can hold it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.budget import Budget
from thrifty.gates import OFFSET, Controller, gumbel, gumbel_sigmoid, likely_open
from thrifty.prune import ranks
from thrifty.prune.batches import mixed
from thrifty.prune.layout import Layout

TaskLoss = Callable[[Mapping[str, Tensor]], Tensor]
"""The loss of the task with these gates (a number in [0, 1] for each part, by the name of its group)."""

_ANNEALED_SHARE = 0.7
_HIDDEN = 128
_GAIN = 10.0  # pressure gained by spending e times the limit for the whole search, in terms of `strength`


@dataclass(frozen=True)
class SearchSettings:
    """How the controller learns.

    The improved form, which is the default, and the published one part in `is_annealed`, `has_pressure`, `is_soft`,
    `dead_zone` and `averaging`, the share of the old logits in their running mean.
    """

    temperature: float = 0.4
    offset: float = OFFSET
    strength: float = 8.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    is_annealed: bool = True
    is_soft: bool = False
    has_pressure: bool = True
    averaging: float = 0.95
    dead_zone: float = 0.0


class Search:
    """The controller of one network, its optimiser, and the running mean of its logits."""

    def __init__(
        self, layout: Layout, budget: Budget, settings: SearchSettings, device: torch.device, seed: int
    ) -> None:
        """Begin with nearly every gate open."""
        self.layout, self.budget, self.settings, self.seed = layout, budget, settings, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed(seed, -2))
            self.controller = Controller(layout.sizes, hidden=_HIDDEN).to(device)
        weights = _decayed(self.controller, settings.weight_decay)
        is_cuda = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(weights, settings.learning_rate, fused=True, capturable=is_cuda)
        self.generator = torch.Generator(device)
        whole = {name: torch.ones(size, device=device) for name, size in layout.sizes.items()}
        self.whole = [one.spent(whole) for one in budget.each]
        self.average = self.logits().detach().clone()
        self.num_steps = 0
        self.progress = 0.0
        self.pressure = torch.zeros(len(self.whole), device=device)
        self._places, self._is_beyond = (one.to(device) for one in _table(layout))
        self._noise = torch.zeros(2 if settings.is_soft else 1, layout.num_parts, device=device)
        self._limits = torch.ones(len(self.whole), dtype=torch.float64, device=device)
        self._gain = torch.zeros((), device=device)
        self._dead_zone = settings.dead_zone * torch.tensor(self.whole, dtype=torch.float64, device=device)

    def logits(self) -> Float[Tensor, " parts"]:
        """What the controller says now, with its gradient."""
        return self.layout.flat({name: rows[0] for name, rows in self.controller().items()})

    def limits_at(self, progress: float) -> list[float]:
        """What of each limit of the budget may be spent when this share of the search is over."""
        done = min(progress / _ANNEALED_SHARE, 1.0) if self.settings.is_annealed else 1.0
        limits = [float(one.limit) for one in self.budget.each]
        return [whole * (limit / whole) ** done for whole, limit in zip(self.whole, limits, strict=True)]

    def step(self, task_loss: TaskLoss, progress: float) -> Tensor:
        """One step of the controller; return the loss of the task. Under DDP all ranks take the same step."""
        self.prepare(progress)
        return self.learn(task_loss)

    @torch.no_grad()
    def prepare(self, progress: float) -> None:
        """Draw the noise of the next step and set its limits."""
        self.generator.manual_seed(mixed(self.seed, self.num_steps))
        self._noise.copy_(gumbel(self._noise, self.generator))
        for number, limit in enumerate(self.limits_at(progress)):
            self._limits[number].fill_(limit)  # a launch without a wait, which a copy from the CPU is not
        self._gain.fill_(_GAIN * self.settings.strength * (progress - self.progress))
        self.progress = progress
        self.num_steps += 1

    def learn(self, task_loss: TaskLoss) -> Tensor:
        """The work of a step that was prepared; return the loss of the task."""
        one = self.settings
        logits = self.logits()
        gates = self._gates(logits, self._noise[0], hard=not one.is_soft)
        loss = task_loss(self.layout.named(gates))
        sampled = self._gates(logits, self._noise[1]) if one.is_soft else gates
        weights = list(self.controller.parameters())
        gradients = torch.autograd.grad(loss + self._budget_term(self.layout.named(sampled)), weights)
        for weight, gradient in zip(weights, ranks.mean(gradients), strict=True):
            weight.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            self.average.lerp_(self.logits(), 1 - one.averaging)
        return loss.detach()

    def _budget_term(self, keep: Mapping[str, Tensor]) -> Tensor:
        """What the limits add to the loss of the task."""
        one = self.settings
        spent = torch.stack([limit.cost(keep) for limit in self.budget.each])
        excess = torch.log((spent / self._limits).clamp_min(1e-6))  # a draw may close all gates of a small network
        if not one.has_pressure:
            floor = torch.log1p(self._dead_zone / self._limits)  # below it, within the zone, there is no gradient
            return one.strength * excess.abs().clamp_min(floor).sum().float()
        excess = excess.float()
        with torch.no_grad():
            self.pressure.add_(self._gain * excess).clamp_min_(0)
        return (self.pressure * excess).sum()

    @torch.no_grad()
    def mask(self) -> Float[Tensor, " parts"]:
        """1 for the parts that are to stay as the mean logits have it, without noise; at least one of each group."""
        return self._filled(likely_open(self.average, self.settings.offset).float())

    @torch.no_grad()
    def sample(self) -> Float[Tensor, " parts"]:
        """As `mask`, but one draw from what the controller says now, as published."""
        self.generator.manual_seed(mixed(self.seed, -3 - self.num_steps))
        return self._filled(self._gates(self.logits(), gumbel(self._noise[0], self.generator)))

    def _gates(self, logits: Tensor, noise: Tensor, hard: bool = True) -> Tensor:
        one = self.settings
        return gumbel_sigmoid(logits, temperature=one.temperature, offset=one.offset, hard=hard, noise=noise)

    def _filled(self, mask: Tensor) -> Tensor:
        """The mask with the best part of every group, so that it empties none."""
        scores = self.average[self._places].masked_fill(self._is_beyond, -torch.inf)
        best = self._places.gather(1, scores.argmax(1, keepdim=True)).flatten()
        return mask.detach().index_fill(0, best, 1.0)

    def scores(self) -> dict[str, Tensor]:
        """How much the controller wants each part, by group."""
        return self.layout.named(self.average)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "controller": self.controller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "pressure": self.pressure,
            "progress": self.progress,
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.controller.load_state_dict(state["controller"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.copy_(state["average"])
        self.pressure.copy_(state["pressure"])
        self.progress, self.num_steps = state["progress"], state["num_steps"]


def _decayed(controller: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases and normalisations do not."""
    weights = [one for one in controller.parameters() if one.dim() > 1]
    rest = [one for one in controller.parameters() if one.dim() <= 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _table(layout: Layout) -> tuple[Tensor, Tensor]:
    """The numbers of the parts of each group in a row, and which places of a row are beyond its end."""
    rows = [torch.arange(size) for size in layout.sizes.values()]
    first = torch.tensor([0, *(len(row) for row in rows[:-1])]).cumsum(0)
    inside = nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    places = nn.utils.rnn.pad_sequence(rows, batch_first=True) + first[:, None]
    return places.where(inside, 0), ~inside
