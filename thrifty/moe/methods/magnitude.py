"""Magnitude: keep the channels with the largest weights (Li et al., 2017, arXiv:1608.08710)."""

from dataclasses import dataclass

from thrifty.moe import static
from thrifty.moe.calibrate import column_norms
from thrifty.moe.job import MoeJob
from thrifty.plan import Plan


@dataclass(frozen=True)
class Magnitude:
    """One mask for all tokens by the norm of each channel's column in the down projection; the data is not looked at.

    `across` ranks the channels of all layers together.
    """

    across: bool = False

    def plan(self, job: MoeJob) -> Plan:
        """One mask for each MLP."""
        scores = {site.name: column_norms(site) for site in job.sites}
        return Plan(repr(self), (static.across_layers if self.across else static.within_layers)(job, scores))
