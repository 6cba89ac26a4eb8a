"""Read-ME: one router before the first layer chooses the experts of all layers (Cai et al., NeurIPS 2024)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.errors import SettingError
from thrifty.moe import calibrate, cluster
from thrifty.moe.job import MoeJob
from thrifty.moe.learnt import top
from thrifty.moe.sites import Site
from thrifty.plan import Plan


@dataclass(frozen=True)
class ReadMe:
    """Pre-gating (arXiv:2410.19123): a token's expert is known before the first MLP and is the same in every layer, so
    experts can be fetched ahead. Groups are clusters of the first MLP's inputs (the paper's domains); an expert has the
    channels with most energy over its group. The paper then trains router and experts; here neither is trained.

    Only a `tomoe` folder can hold a router that serves all layers.
    """

    num_experts: int = 8

    def __post_init__(self) -> None:
        """Refuse a single expert, which needs no router."""
        if self.num_experts < 2:
            raise SettingError(f"ReadMe: num_experts={self.num_experts}; use 2 or more")

    def plan(self, job: MoeJob) -> Plan:
        """Experts of every MLP, and the first layer's router for all of them."""
        widths = job.sizes.uniform_width(job.active, job.scope)
        generator = job.generator()
        keep: dict[str, Tensor] = {}
        evidence: dict[str, Tensor] = {"router.source": torch.tensor(job.sites[0].index)}
        groups: list[Tensor] = []

        def look(site: Site, x: Tensor, h: Tensor) -> None:
            if not groups:
                centres, labels = cluster.spherical_means(x, self.num_experts, generator)
                groups.append(labels)
                evidence[f"{site.name}.router"] = centres.cpu()
            energy = cluster.energies(h, calibrate.column_norms(site), groups[0], self.num_experts)
            keep[site.name] = top(energy, widths[site.name]).cpu()

        calibrate.visit(job, look)
        return Plan(repr(self), keep, evidence)
