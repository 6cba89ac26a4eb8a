"""FLAP: channels that fluctuate matter, the others become a bias (An et al., AAAI 2024, arXiv:2312.11983)."""

from dataclasses import dataclass

from torch import Tensor

from thrifty.moe import calibrate, static
from thrifty.moe.job import MoeJob
from thrifty.moe.sites import Site
from thrifty.plan import Plan


@dataclass(frozen=True)
class Flap:
    """One mask for all tokens by Var(h_j) |W_down[:, j]|^2. A channel that is left out is replaced by its mean: a bias
    of the output.

    `across` standardises the scores of each layer and ranks all layers together (the paper's AL); without it each layer
    keeps the same share (UL), as it does where equal widths are asked for. `bias=false` leaves the bias out: a
    `standard` folder has no place for it.
    """

    across: bool = True
    bias: bool = True

    def plan(self, job: MoeJob) -> Plan:
        """One mask for each MLP, and the bias."""
        scores: dict[str, Tensor] = {}
        means: dict[str, Tensor] = {}

        def look(site: Site, x: Tensor, h: Tensor) -> None:
            scores[site.name] = static.standardised(h.var(0) * calibrate.column_norms(site).square())
            means[site.name] = h.mean(0)

        calibrate.visit(job, look)
        keep = (static.across_layers if self.across else static.within_layers)(job, scores)
        evidence = {}
        for site in job.sites if self.bias else ():
            lost = means[site.name] * (1 - keep[site.name][0].to(means[site.name].device))
            evidence[f"{site.name}.bias"] = (site.down.weight.detach().float() @ lost).cpu()
        return Plan(repr(self), keep, evidence)
