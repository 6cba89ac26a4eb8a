"""SGA with thresholds chosen on held-out training edges, where the published ones were chosen on test edges."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

from sklearn.metrics import roc_auc_score

from thrifty import catalogue
from thrifty.errors import SettingError
from thrifty.graph.apply import apply
from thrifty.graph.job import GraphJob
from thrifty.graph.model import held_out_edges
from thrifty.graph.signed import SignedGraph
from thrifty.plan import Plan

_NEVER = 1.1


@dataclass(frozen=True)
class SgaTuned:
    """Tries every pair of a delete threshold and an add threshold (each for both signs), and no change at all.

    A tenth of the edges is held out. For each choice `scorer` learns the other edges, augmented, and ranks the held-out
    ones; the choice with the best AUC is then planned on all edges. Where plain training is best, nothing changes.
    """

    scorer: str = "sgcn"
    deletes: tuple[float, ...] = (0.0, 0.1, 0.3)
    adds: tuple[float, ...] = (0.95, 0.99)

    def __post_init__(self) -> None:
        """Refuse lists that hold nothing to try."""
        if not self.deletes or not self.adds:
            raise SettingError(f"SgaTuned: deletes={self.deletes}, adds={self.adds}; give one threshold or more")

    def plan(self, job: GraphJob) -> Plan:
        """The plan of the best choice; its evidence does not tell the others."""
        held_out = held_out_edges(job.graph, job.seed)
        learnt, judged = job.graph.take(~held_out), job.graph.take(held_out)
        share = job.budget.limit / job.graph.num_edges
        part = GraphJob.of(learnt, f"{100 * share}%", job.seed)
        generator = self._fit(learnt, job)
        found = {}
        choices = self._choices()
        for choice in job.track(choices, "choosing", len(choices)):
            graph = apply(choice.plan_with(generator, part), learnt).graph
            odds = self._fit(graph, job).log_odds(judged.source, judged.target)
            found[choice] = float(roc_auc_score(judged.sign > 0, odds))
        best = max(choices, key=lambda choice: found[choice])  # the first of equals changes least
        plan = best.plan(job)
        return replace(plan, method=f"{self!r} chose {plan.method}, held-out AUC {found[best]:.4f}")

    def _choices(self) -> list[Any]:
        sga = catalogue.find("graph", "sga")
        candidates = "all" if hasattr(catalogue.find("graph", self.scorer, "scorers"), "lamb") else "near"
        deletes, adds = sorted({0.0, *self.deletes}), sorted({_NEVER, *self.adds}, reverse=True)
        pairs = itertools.product(deletes, adds)
        return [sga(self.scorer, one, one, other, other, candidates=candidates) for one, other in pairs]

    def _fit(self, graph: SignedGraph, job: GraphJob) -> Any:
        return catalogue.find("graph", self.scorer, "scorers")().fit(graph, job.seed, None, job.track)
