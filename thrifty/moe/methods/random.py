"""Random experts and random routers, with or without a core that all experts share: the floor of any comparison."""

from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.errors import SettingError
from thrifty.moe import calibrate
from thrifty.moe.job import MoeJob
from thrifty.moe.learnt import top
from thrifty.moe.sites import Site
from thrifty.plan import Plan


@dataclass(frozen=True)
class Random:
    """Random channels for each expert. `core` is the share of an expert's width that goes to the channels with the
    highest Wanda score, the same in all experts: some channels carry massive activations, and a model without them
    says nothing about the others."""

    num_experts: int = 8
    core: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.num_experts < 1 or not 0 <= self.core <= 1:
            raise SettingError(
                f"Random: num_experts={self.num_experts}, core={self.core}; use 1 or more, and a share from 0 to 1"
            )

    def plan(self, job: MoeJob) -> Plan:
        """Experts of the same width in all layers."""
        generator = torch.Generator().manual_seed(job.seed)
        widths = job.sizes.uniform_width(job.active, job.scope)
        first: dict[str, Tensor] = {site.name: torch.zeros(site.channels) for site in job.sites}
        if self.core:

            def look(site: Site, x: Tensor, h: Tensor) -> None:
                score = h.square().mean(0).sqrt() * site.down.weight.float().abs().mean(0)
                first[site.name] = 2 * top(score[None].cpu(), round(self.core * widths[site.name]))[0]

            calibrate.visit(job, look)
        keep, evidence = {}, {}
        for site in job.sites:
            drawn = torch.rand(self.num_experts, site.channels, generator=generator)
            keep[site.name] = top(drawn + first[site.name], widths[site.name])
            if self.num_experts > 1:
                evidence[f"{site.name}.router"] = torch.randn(self.num_experts, site.width, generator=generator)
        return Plan(repr(self), keep, evidence)
