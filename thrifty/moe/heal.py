"""Healing: train the weights that the experts share, with the masks acting, to predict what the dense model does.

The dense weights are trained and not the exported ones: an expert is a set of channels, so what one token mends is
mended for all experts with that channel, and the export's check (masked equals exported) holds for the healed model as
for any other. Low-rank changes (LoRA, Hu et al., 2021) are parametrisations of the linears, merged at the end; peft's
wrappers would replace the linears on which the masks act.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.moe.distill import Teacher, divergence, hidden_states
from thrifty.moe.job import MoeJob
from thrifty.moe.masking import masked
from thrifty.moe.sites import Site, found
from thrifty.moe.train import Recipe, Team, train
from thrifty.plan import Plan

RATES = {"lora": 1e-3, "full": 5e-5}


@dataclass(frozen=True)
class Heal:
    """How to heal: `lora` trains changes of rank `rank` to every linear of the blocks, `full` the linears themselves;
    embeddings, head and norms stay. `rate` 0 takes the usual one of either."""

    how: Literal["lora", "full"] = "lora"
    steps: int = 200
    rank: int = 16
    rate: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what heals nothing."""
        settings.check(self)
        for name in ("steps", "rank"):
            if getattr(self, name) < 1:
                raise SettingError(f"Heal: {name}={getattr(self, name)}; use 1 or more")

    def __call__(self, job: MoeJob, plan: Plan) -> Any:
        """A copy of the job's model whose weights are healed for `plan`: apply the plan to it. Deterministic."""
        student = copy.deepcopy(job.model).requires_grad_(False)
        if self.how == "full":
            student = student.float()
        linears = [linear for site in found(student) for linear in _linears(site)]
        learnt = self._learnt(job, linears)
        teacher = Teacher(job.model, job.corpus)
        head, team = student.get_output_embeddings(), Team.here()

        def gradients(step: int) -> dict[str, Tensor]:
            ids, wanted = teacher.read(team.part(job.corpus.places(step, job.batch)))
            apart = divergence(hidden_states(student, ids), wanted.to(student.dtype), head)
            apart.backward()
            return {"kl": apart.detach()}

        with masked(student, plan):
            train(
                learnt,
                gradients,
                Recipe(self.steps, self.rate or RATES[self.how], decay=0.0, clip=1.0),
                checkpoint=None,
                identity="",
                track=job.track,
                team=team,
            )
        if self.how == "lora":
            for linear in linears:
                parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)
        student.requires_grad_(False)
        return nn.Module.to(student, dtype=job.model.dtype)

    def _learnt(self, job: MoeJob, linears: list[nn.Linear]) -> dict[str, Tensor]:
        if self.how == "full":
            return {str(number): linear.weight.requires_grad_() for number, linear in enumerate(linears)}
        generator = job.generator()
        learnt = {}
        for number, linear in enumerate(linears):
            change = _LowRank(linear, self.rank, generator)
            parametrize.register_parametrization(linear, "weight", change)
            learnt |= {f"{number}.{name}": parameter for name, parameter in change.named_parameters()}
        return learnt


class _LowRank(nn.Module):
    """W + B A in float32, B from zero, so that the first step sees the weights as they were."""

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        out, width = linear.weight.shape
        first = torch.empty(rank, width, device=linear.weight.device).normal_(std=width**-0.5, generator=generator)
        self.narrow = nn.Parameter(first)
        self.wide = nn.Parameter(torch.zeros(out, rank, device=linear.weight.device))

    def forward(self, weight: Float[Tensor, "out width"]) -> Float[Tensor, "out width"]:
        return weight + (self.wide @ self.narrow).to(weight.dtype)


def _linears(site: Site) -> list[nn.Linear]:
    attention = site.attention
    every = [site.gate, site.up, site.down, attention.q, attention.k, attention.v, attention.o]
    return [one for one in every if one is not None]
