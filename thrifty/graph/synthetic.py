"""A made-up signed graph: groups, hubs, answers to edges, disliked nodes, and signs that are simply wrong."""

from dataclasses import dataclass

import numpy as np

from thrifty.errors import SettingError
from thrifty.graph.signed import SignedGraph, pair_key


@dataclass(frozen=True)
class SyntheticGraph:
    """A signed stochastic block model with hubs (a degree-corrected one: Karrer and Newman, 2011, arXiv:1008.3926).

    A node has a group, an activity and a popularity (both of a power law), a mood as a source and a standing as a
    target. An edge stays in its group with probability `inside`. Its sign is positive with log-odds
    `base`, plus or minus `affinity` inside or outside the group, plus mood and standing; then a share `noise` of
    the signs is turned around. A share `reciprocity` of the edges is answered, mostly with the same sign. Times
    follow the order of the draws; an answer comes after its edge.
    """

    num_nodes: int = 1500
    num_edges: int = 20_000
    num_groups: int = 4
    exponent: float = 2.3
    inside: float = 0.7
    base: float = 1.2
    affinity: float = 1.4
    spread: float = 1.2
    reciprocity: float = 0.3
    same_answer: float = 0.85
    noise: float = 0.04

    def __post_init__(self) -> None:
        if self.num_nodes < 2 * self.num_groups or self.num_groups < 1:
            raise SettingError(f"{self.num_nodes} nodes do not fill {self.num_groups} groups; use two a group at least")
        if not 0 < self.num_edges <= self.num_nodes * (self.num_nodes - 1) // 10:
            raise SettingError(
                f"{self.num_edges} edges between {self.num_nodes} nodes; "
                f"use 1 to {self.num_nodes * (self.num_nodes - 1) // 10}, a tenth of all pairs"
            )
        if self.exponent <= 2:
            raise SettingError(f"a power law of {self.exponent} has no mean; use an exponent above 2")

    def make(self, seed: int = 0) -> SignedGraph:
        """Make the graph of this seed."""
        random = np.random.default_rng(seed)
        group = random.integers(0, self.num_groups, self.num_nodes)
        source, target = self._pairs(group, random)
        mood, standing = random.normal(0, self.spread, (2, self.num_nodes))
        inside = np.where(group[source] == group[target], self.affinity, -self.affinity)
        log_odds = self.base + inside + mood[source] * 0.6 + standing[target]
        sign = np.where(random.random(len(source)) < 1 / (1 + np.exp(-log_odds)), 1, -1)
        sign = np.where(random.random(len(source)) < self.noise, -sign, sign)
        time = np.arange(len(source), dtype=np.float64)
        return self._answered(source, target, sign, time, random)

    def _pairs(self, group: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Distinct pairs, drawn by activity, popularity and group, before any of them is answered."""
        activity, popularity = (random.pareto(self.exponent - 1, self.num_nodes) + 1 for _ in range(2))
        wanted = int(self.num_edges / (1 + self.reciprocity)) + 1
        keys = np.zeros(0, dtype=np.int64)
        while len(keys) < wanted:
            source = random.choice(self.num_nodes, 2 * wanted, p=activity / activity.sum())
            target = random.choice(self.num_nodes, 2 * wanted, p=popularity / popularity.sum())
            for one in range(self.num_groups):
                own = np.flatnonzero(group == one)
                stays = np.flatnonzero((group[source] == one) & (random.random(len(source)) < self.inside))
                if len(own):
                    target[stays] = random.choice(own, len(stays), p=popularity[own] / popularity[own].sum())
            drawn = pair_key(source, target, self.num_nodes)[source != target]
            keys = np.concatenate([keys, drawn])
            keys = keys[np.sort(np.unique(keys, return_index=True)[1])]
        keys = keys[:wanted]
        return keys // self.num_nodes, keys % self.num_nodes

    def _answered(
        self, source: np.ndarray, target: np.ndarray, sign: np.ndarray, time: np.ndarray, random: np.random.Generator
    ) -> SignedGraph:
        known = pair_key(source, target, self.num_nodes)
        is_free = ~np.isin(pair_key(target, source, self.num_nodes), known)
        answer = np.flatnonzero(is_free & (random.random(len(source)) < self.reciprocity))
        same = random.random(len(answer)) < self.same_answer
        late = time[answer] + 0.5 + random.exponential(len(source) / 20, len(answer))
        times = np.concatenate([time, late])
        order = np.argsort(times, kind="stable")[: self.num_edges]
        graph = SignedGraph.of(
            np.concatenate([source, target[answer]])[order],
            np.concatenate([target, source[answer]])[order],
            np.concatenate([sign, np.where(same, sign[answer], -sign[answer])])[order],
            self.num_nodes,
        )
        return SignedGraph(graph.source, graph.target, graph.sign, graph.names, time=times[order])
