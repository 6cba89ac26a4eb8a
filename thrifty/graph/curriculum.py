"""Train from easy to hard: edges in balanced triangles first, those against their surroundings last (SGA, 4.3)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int8, Int64

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.graph.balance import balance
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.signed import SignedGraph


def difficulty(graph: SignedGraph) -> Float64[np.ndarray, " edges"]:
    """u / (b + u) for each edge, from its balanced and unbalanced triangles: 0 easy to 1 hard, 0 without a triangle.

    SGA, equation 7 and the text after it: d = (1 - D) / 2 with the local balance degree D = (b - u) / (b + u).
    """
    balanced, unbalanced = balance(Neighbours.of(graph), graph.source, graph.target, graph.sign)
    return unbalanced / np.maximum(balanced + unbalanced, 1)


@dataclass(frozen=True)
class Pacing:
    """The share g(t) = min(1, start + (1 - start) t / stages) of the edges, easiest first, in stages t = 1 ... stages.

    `per_sign` paces positive and negative edges apart, so that every stage has the shares of the whole; without it the
    few, harder negative edges come late (the published rule). Edges of equal difficulty come in random order; `ties` =
    stable leaves them in the order of the graph.
    """

    difficulty: Float64[np.ndarray, " edges"]
    sign: Int8[np.ndarray, " edges"]
    seed: int
    start: float = 0.25
    stages: int = 30
    per_sign: bool = True
    ties: Literal["random", "stable"] = "random"

    def __post_init__(self) -> None:
        """Refuse values that do not exist."""
        settings.check(self)
        if not 0 < self.start <= 1 or self.stages < 1:
            raise SettingError(
                f"Pacing: start={self.start}, stages={self.stages}; use a start in (0, 1], 1 stage or more"
            )

    def edges_at(self, progress: float) -> Int64[np.ndarray, " chosen"]:
        """Positions of the edges in the loss after the share `progress` of the epochs, in ascending order."""
        stage = min(int(progress * self.stages + 1e-9), self.stages - 1) + 1
        share = min(1.0, self.start + (1 - self.start) * stage / self.stages)
        chosen = [order[: round(share * len(order))] for order in self._orders]
        return np.sort(np.concatenate(chosen))

    @cached_property
    def _orders(self) -> list[Int64[np.ndarray, " part"]]:
        """The edges, or those of either sign, from easy to hard."""
        tie = np.zeros(len(self.sign))
        if self.ties == "random":
            tie = np.random.default_rng(self.seed).random(len(self.sign))
        order = np.lexsort((tie, self.difficulty))
        if not self.per_sign:
            return [order]
        return [order[self.sign[order] > 0], order[self.sign[order] < 0]]
