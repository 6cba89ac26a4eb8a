"""A directed graph whose edges are positive (trust, support) or negative (distrust, opposition)."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int32, Int64, Shaped

from thrifty.errors import DataError, SettingError

Nodes = Int32[np.ndarray, " pairs"]
"""Node numbers, 0 to `num_nodes - 1`."""


@dataclass(frozen=True)
class SignedGraph:
    """Edges from `source` to `target` with `sign` +1 or -1: at most one a direction, none from a node to itself.

    `names` holds what the input calls node 0, 1, ... (int64, or objects that are texts). `weight` and `time` are what
    the input says, where it does; nothing in here interprets them.
    """

    source: Int32[np.ndarray, " edges"]
    target: Int32[np.ndarray, " edges"]
    sign: Int8[np.ndarray, " edges"]
    names: Shaped[np.ndarray, " nodes"]
    weight: Float64[np.ndarray, " edges"] | None = None
    time: Float64[np.ndarray, " edges"] | None = None

    @staticmethod
    def of(source: np.ndarray, target: np.ndarray, sign: np.ndarray, num_nodes: int | None = None) -> "SignedGraph":
        """A graph of node numbers, which are their own names. Raises `DataError` for what is no signed graph."""
        source, target = np.asarray(source), np.asarray(target)
        count = int(max(source.max(initial=-1), target.max(initial=-1))) + 1
        num_nodes = count if num_nodes is None else num_nodes
        if not len(source) == len(target) == len(sign):
            raise DataError(f"{len(source)} sources, {len(target)} targets, {len(sign)} signs; give as many of each")
        if count > num_nodes or min(source.min(initial=0), target.min(initial=0)) < 0:
            raise DataError(f"nodes are numbered 0 to {num_nodes - 1}; found {source.min()} to {count - 1}")
        graph = SignedGraph(
            source.astype(np.int32), target.astype(np.int32), np.asarray(sign).astype(np.int8), np.arange(num_nodes)
        )
        graph.check()
        return graph

    def check(self) -> None:
        """Raise `DataError` for a sign that is not +1 or -1, an edge from a node to itself, or an edge told twice."""
        if not np.isin(self.sign, (-1, 1)).all():
            raise DataError(f"signs are +1 or -1; found {sorted(set(self.sign.tolist()))[:5]}")
        if (self.source == self.target).any():
            raise DataError("an edge goes from a node to itself; leave it out")
        if len(np.unique(self.key)) < self.num_edges:
            raise DataError("an edge is told twice; keep one of them")

    @property
    def num_nodes(self) -> int:
        """Nodes, also those without an edge."""
        return len(self.names)

    @property
    def num_edges(self) -> int:
        """Directed edges."""
        return len(self.source)

    @property
    def positive_share(self) -> float:
        """Share of the edges that are positive; NaN without edges."""
        return float((self.sign > 0).mean()) if self.num_edges else float("nan")

    @property
    def key(self) -> Int64[np.ndarray, " edges"]:
        """One number for each edge that only an edge between the same nodes in the same direction has."""
        return pair_key(self.source, self.target, self.num_nodes)

    def take(self, chosen: Bool[np.ndarray, " edges"] | Int64[np.ndarray, " chosen"]) -> "SignedGraph":
        """The same nodes with the chosen edges only, given as a mask or as positions."""
        return replace(
            self,
            source=self.source[chosen],
            target=self.target[chosen],
            sign=self.sign[chosen],
            weight=None if self.weight is None else self.weight[chosen],
            time=None if self.time is None else self.time[chosen],
        )

    def joined(self, source: np.ndarray, target: np.ndarray, sign: np.ndarray) -> "SignedGraph":
        """These edges, then others between the same nodes; weights and times, which the others lack, are dropped."""
        graph = replace(
            self,
            source=np.concatenate([self.source, source]).astype(np.int32),
            target=np.concatenate([self.target, target]).astype(np.int32),
            sign=np.concatenate([self.sign, sign]).astype(np.int8),
            weight=None,
            time=None,
        )
        graph.check()
        return graph


def pair_key(source: np.ndarray, target: np.ndarray, num_nodes: int) -> Int64[np.ndarray, " pairs"]:
    """`source * num_nodes + target`, one number a directed pair."""
    if num_nodes > 2**31:
        raise SettingError(f"{num_nodes:,} nodes; at most 2,147,483,648 can be numbered")
    return source.astype(np.int64) * num_nodes + target


def need_both_signs(graph: SignedGraph) -> None:
    """Raise `DataError` where there is nothing to learn from: no edges, or edges of one sign only."""
    if graph.num_edges == 0:
        raise DataError("the graph has no edges; give some with both signs")
    if graph.sign.min() == graph.sign.max():
        word = "positive" if graph.sign[0] > 0 else "negative"
        raise DataError(f"all {graph.num_edges:,} edges are {word}; a sign can be learnt only where both occur")
