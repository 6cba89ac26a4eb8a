"""FactorLLM: cut an MLP into slices as they lie, and learn which slice serves a token (Zhao et al., 2024)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from thrifty.errors import SettingError
from thrifty.moe import calibrate
from thrifty.moe.job import MoeJob
from thrifty.moe.routing import linear_router
from thrifty.moe.sites import Site
from thrifty.plan import Plan


@dataclass(frozen=True)
class FactorLlm:
    """Experts are runs of neighbouring channels (arXiv:2408.11855): nothing is reordered and no channel is scored.

    Expert n starts at channel n d_ff / N and goes on around the end; at half the width neighbours overlap by half. The
    router is the paper's prior-approximate one: it is fitted to the expert whose output is closest to the dense MLP's.
    The paper then trains experts and router on task data; here the weights stay as they are. `tokens` are fitted on.
    """

    num_experts: int = 4
    tokens: int = 4096

    def __post_init__(self) -> None:
        """Refuse a single expert, which needs no router."""
        if self.num_experts < 2 or self.tokens < 1:
            raise SettingError(f"{self!r}: use 2 experts or more, and 1 token or more")

    def plan(self, job: MoeJob) -> Plan:
        """Experts and routers of every MLP."""
        widths = job.sizes.uniform_width(job.active, job.scope)
        keep: dict[str, Tensor] = {}
        evidence: dict[str, Tensor] = {}

        def look(site: Site, x: Tensor, h: Tensor) -> None:
            x, h = x[: self.tokens], h[: self.tokens]
            experts = torch.zeros(self.num_experts, site.channels, device=h.device)
            run = torch.arange(widths[site.name], device=h.device)
            for number, row in enumerate(experts):
                row[(run + number * site.channels // self.num_experts) % site.channels] = 1
            weight = site.down.weight.detach().float()
            lost = torch.stack([linear(h * (1 - row), weight).square().sum(-1) for row in experts], dim=-1)
            keep[site.name] = experts.cpu()
            evidence[f"{site.name}.router"] = linear_router(x, lost.argmin(-1), self.num_experts).cpu()

        calibrate.visit(job, look)
        return Plan(repr(self), keep, evidence)
