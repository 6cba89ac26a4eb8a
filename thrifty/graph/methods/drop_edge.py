"""DropEdge: delete random edges and add none (Rong et al., ICLR 2020, arXiv:1907.10903); the control for SGA."""

from dataclasses import dataclass

import numpy as np

from thrifty.errors import SettingError
from thrifty.graph.apply import plan_of
from thrifty.graph.balance import balance
from thrifty.graph.job import GraphJob
from thrifty.graph.neighbours import Neighbours
from thrifty.plan import Plan


@dataclass(frozen=True)
class DropEdge:
    """Every edge is deleted with the same probability `share`, more where the budget asks for it."""

    share: float = 0.1

    def __post_init__(self) -> None:
        """Refuse a share that leaves no edge."""
        if not 0 <= self.share < 1:
            raise SettingError(f"DropEdge: share={self.share}; use 0 or more and less than 1")

    def plan(self, job: GraphJob) -> Plan:
        """Which edges stay."""
        graph = job.graph
        most = max(1, min(round((1 - self.share) * graph.num_edges), int(job.budget.limit)))
        keep = np.zeros(graph.num_edges, dtype=bool)
        keep[np.random.default_rng(job.seed).choice(graph.num_edges, most, replace=False)] = True
        balanced, unbalanced = balance(Neighbours.of(graph), graph.source, graph.target, graph.sign)
        unknown = np.full(graph.num_edges, np.nan)
        edges = {"probability": unknown, "balanced": balanced, "unbalanced": unbalanced}
        none = {name: np.zeros(0, dtype=np.int32) for name in ("source", "target")} | {
            "sign": np.zeros(0, dtype=np.int8)
        }
        proposed = none | dict.fromkeys(edges, np.zeros(0))
        return plan_of(self, keep, np.zeros(0, dtype=bool), edges, proposed)
