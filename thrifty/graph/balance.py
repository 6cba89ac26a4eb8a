# ruff: noqa: ANN001, ANN202 -- numba compiles the functions without annotations
"""Balanced and unbalanced triangles around edges and pairs: exact, and kept up to date as edges come and go.

With S the signs of both directions added up and W how many directions there are, a pair (u, v) has P = sum_w S_uw S_wv
and Q = sum_w W_uw W_wv; an edge of sign s there stands in b = (Q + s P) / 2 balanced and u = (Q - s P) / 2 unbalanced
triangles (SGA, section 4.3). Triangles whose third side has both signs count half to either.
"""

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64
from numba import njit

from thrifty.errors import SettingError
from thrifty.graph.neighbours import NOTHING, Neighbours, seek
from thrifty.graph.paths import two_paths
from thrifty.graph.signed import Nodes, SignedGraph

Counts = tuple[Float64[np.ndarray, " pairs"], Float64[np.ndarray, " pairs"]]


def balance(neighbours: Neighbours, source: Nodes, target: Nodes, sign: Int8[np.ndarray, " pairs"]) -> Counts:
    """Balanced and unbalanced triangles that an edge of `sign` between each pair stands in, or would stand in.

    O(degree) a pair; memory that the pairs alone decide.
    """
    signed, weighted = (paths.astype(np.float64) for paths in two_paths(neighbours, source, target))
    return (weighted + sign * signed) / 2, (weighted - sign * signed) / 2


def triangles(neighbours: Neighbours) -> tuple[int, int, int]:
    """Triangles of connected nodes: balanced, unbalanced, and those with a side of both signs."""
    totals = np.zeros(3, dtype=np.int64)
    _triangles(neighbours.start, neighbours.node, neighbours.relation, totals)
    return int(totals[0]), int(totals[1]), int(totals[2])


@dataclass(frozen=True)
class LiveBalance:
    """Counts around the pairs of a graph that change with it: an edge added or deleted costs O(smaller degree).

    Only pairs that the graph connects, or that were named as `spare` when this was made, can be changed.
    """

    neighbours: Neighbours
    signed: Int64[np.ndarray, " sides"]
    weighted: Int64[np.ndarray, " sides"]

    @staticmethod
    def of(graph: SignedGraph, spare_source: Nodes, spare_target: Nodes) -> "LiveBalance":
        """The counts of `graph`, with room for edges between the spare pairs in either direction."""
        neighbours = Neighbours.of(graph).with_room(spare_source, spare_target)
        owner = np.repeat(np.arange(graph.num_nodes, dtype=np.int32), neighbours.degree)
        return LiveBalance(
            neighbours, *(paths.astype(np.int64) for paths in two_paths(neighbours, owner, neighbours.node))
        )

    def set(self, source: int, target: int, sign: int) -> None:
        """Let the edge from source to target have `sign`; 0 deletes it. Raises `SettingError` for an unknown pair."""
        one = self.neighbours
        if not _set(one.start, one.node, one.relation, self.signed, self.weighted, source, target, sign):
            raise SettingError(f"{source} and {target} are not connected; name the pair as spare")

    def grow(
        self, source: Nodes, target: Nodes, sign: Int8[np.ndarray, " pairs"], room: int
    ) -> Bool[np.ndarray, " twice_pairs"]:
        """Add edges between the pairs in their order, in both directions where they are free, as long as none makes an
        unbalanced triangle or contradicts the other direction, and at most `room` edges.

        Returns which edges were added: those from source to target, then those back.
        """
        one = self.neighbours
        added = np.zeros((2, len(source)), dtype=np.bool_)
        _grow(one.start, one.node, one.relation, self.signed, self.weighted, source, target, sign, room, added)
        return added.ravel()

    def counts(self, source: Nodes, target: Nodes, sign: Int8[np.ndarray, " pairs"]) -> Counts:
        """As `balance`, for pairs that are connected or spare, without counting anew."""
        one = self.neighbours
        place = np.empty(len(source), dtype=np.int64)
        _places(one.start, one.node, source, target, place)
        if (place < 0).any():
            raise SettingError(f"{int((place < 0).sum())} of {len(source)} pairs are neither connected nor spare")
        signed, weighted = self.signed[place], self.weighted[place]
        return (weighted + sign * signed) / 2, (weighted - sign * signed) / 2


@njit(cache=True, nogil=True)
@no_type_check
def _sides(relation):
    """S and W of a relation: the signs of both directions added up, and how many directions there are."""
    forth, back = relation // 3 - 1, relation % 3 - 1
    return forth + back, abs(forth) + abs(back)


@njit(cache=True, nogil=True)
@no_type_check
def _places(start, node, source, target, place):
    for pair in range(len(source)):
        place[pair] = seek(start, node, source[pair], target[pair])


@njit(cache=True, nogil=True)
@no_type_check
def _triangles(start, node, relation, totals):
    known = np.full(len(start) - 1, NOTHING, np.int8)
    for u in range(len(start) - 1):
        for i in range(start[u], start[u + 1]):
            known[node[i]] = relation[i]
        for i in range(start[u], start[u + 1]):
            v = node[i]
            if v > u:
                for j in range(start[v], start[v + 1]):
                    there = known[node[j]]
                    if node[j] > v and there != NOTHING:
                        product = _sides(relation[i])[0] * _sides(relation[j])[0] * _sides(there)[0]
                        totals[0 if product > 0 else 1 if product < 0 else 2] += 1
        for i in range(start[u], start[u + 1]):
            known[node[i]] = NOTHING


@njit(cache=True, nogil=True)
@no_type_check
def _set(start, node, relation, signed, weighted, u, v, sign):
    here, there = seek(start, node, u, v), seek(start, node, v, u)
    if here < 0:
        return False
    sign_before, ways_before = _sides(relation[here])
    relation[here] = 3 * (sign + 1) + relation[here] % 3
    relation[there] = 3 * (relation[there] // 3) + sign + 1
    sign_after, ways_after = _sides(relation[here])
    by, ways = sign_after - sign_before, ways_after - ways_before
    if start[u + 1] - start[u] > start[v + 1] - start[v]:
        u, v = v, u
    for i in range(start[u], start[u + 1]):
        w = node[i]
        j = seek(start, node, v, w)
        if j < 0 or w == v:
            continue
        sign_u, ways_u = _sides(relation[i])
        sign_v, ways_v = _sides(relation[j])
        for place, other_sign, other_ways in (
            (i, sign_v, ways_v),
            (seek(start, node, w, u), sign_v, ways_v),
            (j, sign_u, ways_u),
            (seek(start, node, w, v), sign_u, ways_u),
        ):
            signed[place] += by * other_sign
            weighted[place] += ways * other_ways
    return True


@njit(cache=True, nogil=True)
@no_type_check
def _grow(start, node, relation, signed, weighted, source, target, sign, room, added):
    for pair in range(len(source)):
        u, v, wanted = source[pair], target[pair], sign[pair]
        here = seek(start, node, u, v)
        forth, back = relation[here] // 3 - 1, relation[here] % 3 - 1
        free = (forth == 0) + (back == 0)
        is_against = forth == -wanted or back == -wanted
        if free == 0 or free > room or is_against or weighted[here] != wanted * signed[here]:
            continue
        room -= free
        if forth == 0:
            _set(start, node, relation, signed, weighted, u, v, wanted)
            added[0, pair] = True
        if back == 0:
            _set(start, node, relation, signed, weighted, v, u, wanted)
            added[1, pair] = True
