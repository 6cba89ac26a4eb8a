# ruff: noqa: ANN001, ANN201, ANN202 -- numba compiles the functions without annotations
"""Who is connected to whom, in either direction, and how: what every count of triangles and paths reads."""

from dataclasses import dataclass
from functools import cached_property
from typing import no_type_check

import numpy as np
from jaxtyping import Int8, Int32, Int64
from numba import njit

from thrifty.graph.signed import Nodes, SignedGraph

NOTHING = 4
"""The relation of nodes that are not connected."""


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of node u are `node[start[u] : start[u + 1]]`, ascending, with a relation each.

    The relation of u to w is 3 (sign of u -> w, plus 1) + (sign of w -> u, plus 1), where an absent edge has sign 0:
    0 to 8, never 4. 5 bytes a connected pair and side, 8 a node.
    """

    start: Int64[np.ndarray, " nodes_and_one"]
    node: Int32[np.ndarray, " sides"]
    relation: Int8[np.ndarray, " sides"]

    @staticmethod
    def of(graph: SignedGraph) -> "Neighbours":
        """The neighbours in `graph`; takes O(edges log edges)."""
        count = np.int64(graph.num_nodes)
        forward = graph.source.astype(np.int64) * count + graph.target
        backward = graph.target.astype(np.int64) * count + graph.source
        key = np.concatenate([forward, backward])
        change = np.concatenate([3 * graph.sign, graph.sign]).astype(np.int8)
        del forward, backward
        order = np.argsort(key, kind="stable")
        key, change = key[order], change[order]
        del order
        is_first = np.ones(len(key), dtype=bool)
        is_first[1:] = key[1:] != key[:-1]
        relation = np.full(int(is_first.sum()), NOTHING, dtype=np.int8)
        np.add.at(relation, np.cumsum(is_first) - 1, change)
        key = key[is_first]
        start = np.searchsorted(key, np.arange(graph.num_nodes + 1, dtype=np.int64) * count)
        return Neighbours(start.astype(np.int64), (key % count).astype(np.int32), relation)

    def with_room(self, source: Nodes, target: Nodes) -> "Neighbours":
        """A copy in which these pairs are neighbours too, with the relation `NOTHING` where they were not."""
        count = np.int64(self.num_nodes)
        owner = np.repeat(np.arange(self.num_nodes, dtype=np.int64), self.degree)
        more = np.concatenate([source * count + target, target * count + source])
        key = np.concatenate([owner * count + self.node, more])
        relation = np.concatenate([self.relation, np.full(len(more), NOTHING, dtype=np.int8)])
        key, first = np.unique(key, return_index=True)  # the first of equals: what is known
        start = np.searchsorted(key, np.arange(self.num_nodes + 1, dtype=np.int64) * count)
        return Neighbours(start.astype(np.int64), (key % count).astype(np.int32), relation[first])

    @property
    def num_nodes(self) -> int:
        """Nodes, also those without neighbours."""
        return len(self.start) - 1

    @property
    def degree(self) -> Int64[np.ndarray, " nodes"]:
        """Connected nodes of each node, whatever the directions."""
        return np.diff(self.start)

    @cached_property
    def signed_degree(self) -> Int64[np.ndarray, "nodes 4"]:
        """Edges of each node by kind: out and positive, out and negative, in and positive, in and negative."""
        forth, back = self.relation // 3 - 1, self.relation % 3 - 1
        kinds = (forth > 0, forth < 0, back > 0, back < 0)
        totals = [np.concatenate([[0], np.cumsum(kind)]) for kind in kinds]
        return np.stack([total[self.start[1:]] - total[self.start[:-1]] for total in totals], axis=1)

    def between(self, source: Nodes, target: Nodes) -> tuple[Int8[np.ndarray, " pairs"], Int8[np.ndarray, " pairs"]]:
        """The signs of the edges from each source to its target and back; 0 where there is none."""
        found = np.empty(len(source), dtype=np.int8)
        _between(self.start, self.node, self.relation, source, target, found)
        return (found // 3 - 1).astype(np.int8), (found % 3 - 1).astype(np.int8)


@njit(cache=True, nogil=True)
@no_type_check
def seek(start, node, u, v):
    """Where v stands among the neighbours of u, by bisection; -1 where it does not."""
    low, high = start[u], start[u + 1]
    while low < high:
        middle = (low + high) // 2
        if node[middle] < v:
            low = middle + 1
        else:
            high = middle
    return low if low < start[u + 1] and node[low] == v else -1


@njit(cache=True, nogil=True)
@no_type_check
def relation_of(start, node, relation, u, v):
    """The relation of u to v."""
    place = seek(start, node, u, v)
    return relation[place] if place >= 0 else NOTHING


@njit(cache=True, nogil=True)
@no_type_check
def _between(start, node, relation, source, target, found):
    for pair in range(len(source)):
        found[pair] = relation_of(start, node, relation, source[pair], target[pair])
