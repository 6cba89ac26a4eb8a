"""Wanda-sp: weights times activations, summed over a channel (Sun et al., 2024; structured as in FLAP)."""

from dataclasses import dataclass

from torch import Tensor

from thrifty.moe import calibrate, static
from thrifty.moe.job import MoeJob
from thrifty.moe.sites import Site
from thrifty.plan import Plan


@dataclass(frozen=True)
class WandaSp:
    """One mask for all tokens by mean_i |W_ij| |h_j| (arXiv:2306.11695; over output rows i, |h_j| the norm over the
    calibration tokens), ranked within each layer; `across` ranks all layers together."""

    across: bool = False

    def plan(self, job: MoeJob) -> Plan:
        """One mask for each MLP."""
        scores: dict[str, Tensor] = {}

        def look(site: Site, x: Tensor, h: Tensor) -> None:
            scores[site.name] = site.down.weight.float().abs().mean(0) * h.square().mean(0).sqrt()

        calibrate.visit(job, look)
        return Plan(repr(self), (static.across_layers if self.across else static.within_layers)(job, scores))
