"""ToMoE's start without its training: experts and routers from groups of tokens (training-free)."""

from dataclasses import dataclass

from torch import Tensor

from thrifty.errors import SettingError
from thrifty.moe import calibrate, cluster
from thrifty.moe.job import MoeJob
from thrifty.moe.learnt import top
from thrifty.moe.sites import Site
from thrifty.plan import Plan


@dataclass(frozen=True)
class Cluster:
    """Each expert keeps the channels that its group of tokens needs most; all layers have the same share.

    `by_need` groups tokens by the channels they need and fits a linear router to that; without it they are grouped by
    the MLP's input (spherical k-means), whose centres are the router.
    """

    num_experts: int = 8
    by_need: bool = True

    def __post_init__(self) -> None:
        """Refuse no expert."""
        if self.num_experts < 1:
            raise SettingError(f"Cluster: num_experts={self.num_experts}; use 1 or more")

    def plan(self, job: MoeJob) -> Plan:
        """Experts and routers of every MLP, from one pass over the calibration windows."""
        widths = job.sizes.uniform_width(job.active, job.scope)
        generator = job.generator()
        keep: dict[str, Tensor] = {}
        evidence: dict[str, Tensor] = {}

        def look(site: Site, x: Tensor, h: Tensor) -> None:
            norms, width = calibrate.column_norms(site), widths[site.name]
            found = cluster.groups(x, h, norms, self.num_experts, width, generator, self.by_need)
            keep[site.name] = top(found.energy, width).cpu()
            if self.num_experts > 1:
                evidence[f"{site.name}.router"] = found.router.cpu()

        calibrate.visit(job, look)
        return Plan(repr(self), keep, evidence)
