"""ToMoE: a controller learns experts and routers by distillation; the weights stay frozen (Gao et al., 2025)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty import gates, settings
from thrifty.errors import SettingError
from thrifty.gates import Controller
from thrifty.moe import calibrate, cluster
from thrifty.moe.balance import balance_loss, expected_width, log_ratio, union, union_loss
from thrifty.moe.distill import divergence, hidden_states
from thrifty.moe.job import MoeJob
from thrifty.moe.learnt import Learnt, acting, settled, top
from thrifty.moe.sites import Site
from thrifty.moe.train import Recipe, Team, train
from thrifty.plan import Plan

_START, _NOISE, _ROUTES = 1, 1_000, 500_000_000


@dataclass(frozen=True)
class Tomoe:
    """Learn which channels each token needs: arXiv:2501.15316, with the weights of its losses.

    The loss is `distil` x the KL divergence from the dense model + `limit` x the log ratio of active parameters to the
    budget + `union` x the log ratio of the experts' union to all channels + `balance` x the Switch loss.

    Ours differs from the released code where that was found to matter: experts start from clusters of the MLP inputs
    (`start="published"` gives the paper's, in which all gates are open and all experts alike); in the last `settle` of
    the steps the masks are the exported ones, without noise, and every expert has the width that it will have;
    `anneal` is the share of steps in which the budget falls from `first` to what is asked. `logits="free"` learns one
    number for every expert and channel in place of the controller.
    """

    num_experts: int = 8
    start: Literal["clustered", "published"] = "clustered"
    logits: Literal["controller", "free"] = "controller"
    rate: float = 2e-3
    decay: float = 0.05
    distil: float = 2.0
    limit: float = 16.0
    union: float = 3.0
    balance: float = 1.0
    spread: float = 3.0
    sharpness: float = 4.0
    first: float = 0.75
    anneal: float = 0.3
    settle: float = 0.4

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        settings.check(self)
        if not 1 <= self.num_experts <= 128:
            raise SettingError(f"Tomoe: num_experts={self.num_experts}; use 1 to 128")
        for name in ("anneal", "settle"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"Tomoe: {name}={getattr(self, name)}; use a share of the steps, from 0 to 1")

    def plan(self, job: MoeJob) -> Plan:
        """Experts and routers of every MLP. Training goes on from `job.checkpoint` where that is there."""
        learnt = Learnt(job.sites, self.num_experts, job.generator(_START), is_free=self.logits == "free")
        if self.start == "clustered":
            self._cluster(job, learnt)
        needed = [parameter.requires_grad for parameter in job.model.parameters()]
        job.model.requires_grad_(False)
        try:
            history = train(
                {**dict(learnt.named_parameters()), "widths": learnt.widths},
                self._loss(job, learnt),
                Recipe(job.steps, self.rate, self.decay),
                checkpoint=job.checkpoint,
                identity=f"{self!r} active={job.active} {job.scope} {job.widths} {job.steps}x{job.batch} {job.seed}",
                track=job.track,
                team=Team.here(),
            )
        finally:
            for parameter, was_needed in zip(job.model.parameters(), needed, strict=True):
                parameter.requires_grad_(was_needed)
        return _exported(self, job, learnt, history)

    def _cluster(self, job: MoeJob, learnt: Learnt) -> None:
        wanted: dict[str, Tensor] = {}
        generator = job.generator(_START)

        def look(site: Site, x: Tensor, h: Tensor) -> None:
            means, labels = cluster.spherical_means(x, self.num_experts, generator)
            energy = cluster.energies(h, calibrate.column_norms(site), labels, self.num_experts)
            wanted[site.name] = cluster.start_logits(energy, self._share_at(job, 0), self.spread)
            if self.num_experts > 1:
                learnt.router(site.name).data.copy_(self.sharpness * means)

        calibrate.visit(job, look)
        if isinstance(learnt.emitter, Controller):
            cluster.solve_heads(learnt.emitter, wanted)
        else:
            for name, logits in learnt.logits().items():
                logits.data.copy_(wanted[name])

    def _share_at(self, job: MoeJob, step: int) -> float:
        """The share of the MLPs that is to be active at a step; it falls in a straight line."""
        falling = self.anneal * job.steps
        left = max(0.0, 1 - step / falling) if falling else 0.0
        return job.share + left * max(0.0, self.first - job.share)

    def _loss(self, job: MoeJob, learnt: Learnt) -> Callable[[int], tuple[Tensor, dict[str, Tensor]]]:
        model, team, head = job.model, Team.here(), job.model.get_output_embeddings()
        settling = job.steps - round(self.settle * job.steps)

        def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
            ids = team.part(job.corpus.batch(step, job.batch)).to(model.device)
            with torch.no_grad():
                teacher = hidden_states(model, ids)
            logits = learnt.logits()
            chance = {name: gates.keep_probability(one) for name, one in logits.items()}
            is_settled = step >= settling
            if is_settled and not learnt.widths.any():
                learnt.widths.copy_(torch.tensor(list(_widths(job, chance).values())))
            noise = None if is_settled else job.generator(_ROUTES + step * team.size + team.rank)
            masks = self._masks(logits, learnt, None if is_settled else job.generator(_NOISE + step))
            with acting(job.sites, masks, dict(zip(learnt.names, learnt.routers, strict=True)), noise) as seen:
                student = hidden_states(model, ids)
            apart = divergence(student, teacher, head)
            total = self.distil * apart
            if not is_settled:
                total = total + self.limit * _over(job, chance, self._share_at(job, step))
            if self.num_experts > 1:
                total = total + self.union * union_loss(list(masks.values()))
                total = total + self.balance * balance_loss(list(seen.router_logits.values()))
            return total, {"kl": apart.detach(), **_facts(job, masks)}

        return loss

    def _masks(
        self, logits: dict[str, Tensor], learnt: Learnt, noise: torch.Generator | None
    ) -> dict[str, Float[Tensor, "experts channels"]]:
        """Sampled masks; without `noise` those that the export will have."""
        if noise is not None:
            return {name: gates.gumbel_sigmoid(one, generator=noise) for name, one in logits.items()}
        widths = learnt.widths.tolist()
        return {name: settled(one, width) for (name, one), width in zip(logits.items(), widths, strict=True)}


def _shares(job: MoeJob, chance: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """For each layer the share of its channels that are expected to be active, and its weights."""
    shares = torch.stack([expected_width(one) / one.shape[-1] for one in chance.values()])
    return shares, torch.tensor([float(job.sizes.parts[name].weights) for name in chance], device=shares.device)


def _over(job: MoeJob, chance: dict[str, Tensor], share: float) -> Tensor:
    """How far the active parameters are from the budget: of all layers together, or of each where they are equal."""
    shares, weights = _shares(job, chance)
    if job.widths == "equal":
        return log_ratio(shares, share).mean()
    return log_ratio((shares * weights).sum() / weights.sum(), share)


def _widths(job: MoeJob, chance: dict[str, Tensor]) -> dict[str, int]:
    return job.fitted({name: float(expected_width(one)) for name, one in chance.items()})


@torch.no_grad()
def _facts(job: MoeJob, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    shares, weights = _shares(job, masks)
    covered = torch.stack([union(one) for one in masks.values()]).mean()
    return {"active": (shares * weights).sum() / weights.sum(), "union": covered}


@torch.no_grad()
def _exported(method: Tomoe, job: MoeJob, learnt: Learnt, history: list[dict[str, float]]) -> Plan:
    """The plan without noise: every expert has the width of its layer, its largest logits are its channels."""
    logits = learnt.logits()
    if not learnt.widths.any():
        chance = {name: gates.keep_probability(one) for name, one in logits.items()}
        learnt.widths.copy_(torch.tensor(list(_widths(job, chance).values())))
    keep, evidence = {}, {}
    for name, width in zip(learnt.names, learnt.widths.tolist(), strict=True):
        keep[name] = top(logits[name], width).cpu()
        if method.num_experts > 1:
            evidence[f"{name}.router"] = learnt.router(name).detach().float().cpu().clone()
    rows = [[row[key] for key in ("step", "kl", "active", "union")] for row in history]
    evidence["history"] = torch.tensor(rows, dtype=torch.float32)
    return Plan(repr(replace(method)), keep, evidence)
