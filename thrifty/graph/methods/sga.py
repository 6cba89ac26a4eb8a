"""SGA: add edges that make no unbalanced triangle, delete those the model disbelieves (Zhang et al., NeurIPS 2024)."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from thrifty import catalogue, settings
from thrifty.errors import SettingError
from thrifty.graph.apply import plan_of
from thrifty.graph.balance import LiveBalance, balance
from thrifty.graph.candidates import Candidates, all_pairs, class_probabilities, near_pairs
from thrifty.graph.job import GraphJob
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.scorer import Fitted
from thrifty.graph.signed import SignedGraph, pair_key
from thrifty.plan import Plan

Preset = Literal["none", "bitcoin-alpha", "bitcoin-otc", "epinions", "slashdot", "wiki-elec", "wiki-rfa"]

PUBLISHED: dict[str, tuple[float, float, float, float]] = {
    "bitcoin-alpha": (0.3, 0.5, 0.99, 1.0),
    "bitcoin-otc": (0.2, 0.2, 0.98, 0.99),
    "epinions": (0.15, 0.4, 1.0, 1.0),
    "slashdot": (0.4, 0.4, 0.98, 0.99),
    "wiki-elec": (0.45, 0.5, 0.95, 0.95),
    "wiki-rfa": (0.4, 0.45, 0.98, 0.98),
}
"""The thresholds of SGCN+SGA for each graph: delete + and -, add + and -. They were chosen on the test edges."""


@dataclass(frozen=True)
class Sga:
    """A scorer learns the edges; then edges change where it is sure.

    A positive edge is deleted where P(positive) < `delete_positive`, a negative one where P(negative) <
    `delete_negative`; an edge is added where P of its sign reaches `add_positive` or `add_negative` and it makes no
    unbalanced triangle. Thresholds of 0 delete nothing, thresholds above 1 add nothing. Where the budget is smaller
    than what would be kept, the edges that are believed least go too.

    `candidates` = all looks at every pair (needs a scorer whose logits are separable, such as sgcn), near at pairs with
    a common neighbour. `balance` = strict counts triangles as edges come and go and never sets two directions against
    each other; static counts in the graph as it was, as published, so that edges added together may still make
    unbalanced triangles. A `preset` takes the published thresholds of that graph, all pairs and static counts, with
    probabilities rounded to two decimals. An accepted pair gets both directions where they are free.
    """

    scorer: str = "sgcn"
    delete_positive: float = 0.05
    delete_negative: float = 0.05
    add_positive: float = 0.99
    add_negative: float = 0.99
    candidates: Literal["all", "near"] = "all"
    balance: Literal["strict", "static"] = "strict"
    preset: Preset = "none"

    def __post_init__(self) -> None:
        """Refuse values that do not exist."""
        settings.check(self)

    def plan(self, job: GraphJob) -> Plan:
        """Which edges stay and which are added. Raises `SettingError` for a scorer that does not fit."""
        one = self._resolved()
        scorer = catalogue.find("graph", one.scorer, "scorers")()
        return one.plan_with(scorer.fit(job.graph, job.seed, None, job.track), job)

    def plan_with(self, fitted: Fitted, job: GraphJob) -> Plan:
        """As `plan`, with a scorer that has learnt `job.graph` already."""
        one, graph = self._resolved(), job.graph
        belief = one._rounded(_belief(fitted, graph))
        keep = belief >= np.where(graph.sign > 0, one.delete_positive, one.delete_negative)
        if not keep.any():
            raise SettingError(f"{one}: every edge would be deleted; lower the thresholds")
        keep &= _most_believed(np.where(keep, belief, -1.0), int(job.budget.limit))
        found = one._candidates(fitted, job)
        take, facts = one._accepted(graph.take(keep), found, graph, int(job.budget.limit) - int(keep.sum()))
        counts = balance(Neighbours.of(graph), graph.source, graph.target, graph.sign)
        edges = {"probability": belief, "balanced": counts[0], "unbalanced": counts[1]}
        return plan_of(self, keep, take, edges, facts)

    def _resolved(self) -> "Sga":
        """These settings, or those that the preset stands for."""
        if self.preset == "none":
            return self
        names = ("delete_positive", "delete_negative", "add_positive", "add_negative")
        chosen = dict(zip(names, PUBLISHED[self.preset], strict=True))
        return replace(self, **chosen, candidates="all", balance="static")

    def _rounded(self, probability: np.ndarray) -> np.ndarray:
        return probability if self.preset == "none" else np.round(probability, 2)

    def _candidates(self, fitted: Fitted, job: GraphJob) -> Candidates:
        """Pairs that pass the thresholds of either sign, as many of each as there are edges at most, surest first."""
        parts = []
        limits = ((1, self.add_positive), (-1, self.add_negative))
        slack = 0.0 if self.preset == "none" else 0.005  # 0.995 reads 1.00
        for sign, least in limits:
            if least - slack > 1:
                continue
            if self.candidates == "all":
                terms = getattr(fitted, "class_terms", None)
                if terms is None:
                    raise SettingError(f"candidates=all needs separable logits, which {self.scorer} has not; use near")
                parts.append(all_pairs(terms(), sign, least - slack, job.graph.num_edges))
            else:
                parts.append(_near(fitted, job, sign, least))
        if not parts:
            return Candidates(*(np.zeros(0, dtype=kind) for kind in (np.int32, np.int32, np.int8, np.float64)))
        joined = Candidates(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        order = np.argsort(-joined.probability, kind="stable")
        return Candidates(*(column[order] for column in joined))

    def _accepted(
        self, kept: SignedGraph, found: Candidates, graph: SignedGraph, room: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The directed edges proposed, forth and back for each candidate, which of them are taken, and their facts."""
        balanced, unbalanced = balance(Neighbours.of(graph), found.source, found.target, found.sign)
        if self.balance == "strict":
            live = LiveBalance.of(kept, found.source, found.target)
            take = live.grow(found.source, found.target, found.sign, room)
        else:
            take = _free(kept, found, unbalanced <= 0, room)
        twice = [np.concatenate([column, column]) for column in (found.sign, found.probability, balanced, unbalanced)]
        source, target = np.r_[found.source, found.target], np.r_[found.target, found.source]
        names = ("source", "target", "sign", "probability", "balanced", "unbalanced")
        return take, dict(zip(names, (source, target, *twice), strict=True))


def _belief(fitted: Fitted, graph: SignedGraph) -> np.ndarray:
    """P of the sign that each edge has."""
    positive, negative = class_probabilities(fitted, graph.source, graph.target)
    return np.where(graph.sign > 0, positive, negative)


def _most_believed(belief: np.ndarray, most: int) -> np.ndarray:
    """A mask of the `most` edges that are believed most."""
    chosen = np.zeros(len(belief), dtype=bool)
    chosen[np.argsort(-belief, kind="stable")[:most]] = True
    return chosen


def _near(fitted: Fitted, job: GraphJob, sign: int, least: float) -> Candidates:
    source, target = near_pairs(Neighbours.of(job.graph), 4 * job.graph.num_edges, job.seed)
    probability = class_probabilities(fitted, source, target)[0 if sign > 0 else 1]
    order = np.argsort(-probability, kind="stable")[: job.graph.num_edges]
    order = order[probability[order] >= least]
    signs = np.full(len(order), sign, dtype=np.int8)
    return Candidates(source[order], target[order], signs, probability[order])


def _free(kept: SignedGraph, found: Candidates, is_allowed: np.ndarray, room: int) -> np.ndarray:
    """Which cells, forth then back of each candidate, are free: they go to the first allowed candidate."""
    forth = pair_key(found.source, found.target, kept.num_nodes)
    back = pair_key(found.target, found.source, kept.num_nodes)
    cells, allowed = np.stack([forth, back], axis=1).ravel(), np.repeat(is_allowed, 2)
    wanted = np.flatnonzero(allowed & ~np.isin(cells, kept.key))
    first = np.sort(wanted[np.unique(cells[wanted], return_index=True)[1]])[: max(room, 0)]
    take = np.zeros(len(cells), dtype=bool)
    take[first] = True
    return take.reshape(-1, 2).T.ravel()
