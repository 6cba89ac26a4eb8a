# ruff: noqa: ANN001, ANN202 -- numba compiles the functions without annotations
# pyright: reportIndexIssue=false, reportArgumentType=false
"""Signed paths of two and three edges between the ends of many pairs, exact, in memory that the pairs alone decide.

Pairs are grouped by their source. For a source, what its neighbours say is laid out once over the nodes; each of its
targets then reads that at its own neighbours: O(sum of the smaller
degrees) for two edges, O(sum of squared degrees) for three.
`no_type_check` keeps the checker of shapes, which the tests install, off what numba compiles.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float32
from numba import njit

from thrifty.graph.neighbours import NOTHING, Neighbours, relation_of
from thrifty.graph.signed import Nodes

TWO, THREE = 16, 32
"""How many kinds of paths of two and of three edges are told apart."""
_BLOCKS = 64  # pieces of work for the threads


def two_edge_names() -> list[str]:
    """The kinds of paths from u over w to v, in the order of the columns of `two_edges`."""
    return [f"{first}, {last}" for first in _hops("u", "w") for last in _hops("v", "w")]


def three_edge_names() -> list[str]:
    """The kinds of paths from u over x and w to v, in the order of the columns of `three_edges`.

    `u->x, x->w agree` are paths whose first two edges have the same sign.
    """
    kinds = [
        f"{first}, {second} {word}"
        for first in ("u->x", "x->u")
        for second in ("x->w", "w->x")
        for word in ("agree", "differ")
    ]
    return [f"{kind}, {last}" for kind in kinds for last in _hops("v", "w")]


def two_edges(neighbours: Neighbours, source: Nodes, target: Nodes) -> Float32[np.ndarray, "pairs 16"]:
    """For each pair (u, v), common neighbours w by direction and sign of the edges between u, w and v."""
    source, target, swapped = _hub_first(neighbours, source, target)
    counts = _by_source(_two_edges, neighbours, source, target, TWO)
    counts[swapped] = counts[swapped].reshape(-1, 4, 4).transpose(0, 2, 1).reshape(-1, TWO)
    return counts


def three_edges(
    neighbours: Neighbours, source: Nodes, target: Nodes, max_degree: int = 5000
) -> Float32[np.ndarray, "pairs 32"]:
    """For each pair (u, v), paths u - x - w - v by direction and sign, with u, x, w and v all different.

    A path counts 1 / (log2(2 + degree of x) log2(2 + degree of w)): who is connected to everybody tells little. Nodes x
    with more than `max_degree` neighbours are left out, which bounds the work on graphs with hubs.
    """
    weight = (1 / np.log2(2 + neighbours.degree)).astype(np.float32)
    return _by_source(_three_edges, neighbours, source, target, THREE, weight, max_degree, _AGREEMENTS)


def two_paths(
    neighbours: Neighbours, source: Nodes, target: Nodes
) -> tuple[Float32[np.ndarray, " pairs"], Float32[np.ndarray, " pairs"]]:
    """Paths of two edges whatever their directions, with the product of their signs and without: sum_w S_uw S_wv and
    sum_w W_uw W_wv, where S adds up the signs of both directions and W counts them. Exact up to 16 million."""
    source, target, _ = _hub_first(neighbours, source, target)
    counts = _by_source(_two_paths, neighbours, source, target, 2)
    return counts[:, 0], counts[:, 1]


def _hops(one: str, other: str) -> list[str]:
    return [f"{one}->{other} +", f"{one}->{other} -", f"{other}->{one} +", f"{other}->{one} -"]


def _hub_first(neighbours: Neighbours, source: Nodes, target: Nodes) -> tuple[Nodes, Nodes, np.ndarray]:
    """The pairs with the end that has more neighbours as the source, so that the fewer ones are walked for each pair;
    and which pairs were swapped."""
    swapped = neighbours.degree[source] < neighbours.degree[target]
    return np.where(swapped, target, source), np.where(swapped, source, target), swapped


def _by_source(kernel, neighbours: Neighbours, source: Nodes, target: Nodes, columns: int, *more: object):
    """Run `kernel` on the pairs sorted by source, in pieces of about equal work, and undo the sorting."""
    if len(source) == 0:
        return np.zeros((0, columns), dtype=np.float32)
    order = np.lexsort((target, source))
    source, target = source[order], target[order]
    first = np.flatnonzero(np.r_[True, source[1:] != source[:-1], True])
    degree = neighbours.degree
    work = np.add.reduceat(degree[target] + 50, first[:-1]) + 20 * degree[source[first[:-1]]]
    total = np.r_[0, np.cumsum(work)]
    bounds = np.unique(np.searchsorted(total, np.linspace(0, total[-1], _BLOCKS + 1)))
    counts = np.zeros((len(source), columns), dtype=np.float32)
    given = (neighbours.start, neighbours.node, neighbours.relation, source, target, first)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # the kernels do not hold the interpreter
        list(threads.map(lambda begin, end: kernel(*given, begin, end, *more, counts), bounds[:-1], bounds[1:]))
    result = np.empty_like(counts)
    result[order] = counts
    return result


@njit(cache=True, nogil=True)
@no_type_check
def _add_hop(counts, row, column, relation, amount):
    """Count the last edge, between v and w, by direction and sign."""
    forth, back = relation // 3 - 1, relation % 3 - 1
    if forth != 0:
        counts[row, column + (0 if forth > 0 else 1)] += amount
    if back != 0:
        counts[row, column + (2 if back > 0 else 3)] += amount


@njit(cache=True, nogil=True)
@no_type_check
def _two_edges(start, node, relation, source, target, first, begin, end, counts):
    known = np.full(len(start) - 1, NOTHING, np.int8)
    for group in range(begin, end):
        u = source[first[group]]
        for i in range(start[u], start[u + 1]):
            known[node[i]] = relation[i]
        for pair in range(first[group], first[group + 1]):
            v = target[pair]
            for i in range(start[v], start[v + 1]):
                there = known[node[i]]
                if there == NOTHING:
                    continue
                forth, back = there // 3 - 1, there % 3 - 1
                if forth != 0:
                    _add_hop(counts, pair, 0 if forth > 0 else 4, relation[i], 1.0)
                if back != 0:
                    _add_hop(counts, pair, 8 if back > 0 else 12, relation[i], 1.0)
        for i in range(start[u], start[u + 1]):
            known[node[i]] = NOTHING


def _agreements() -> np.ndarray:
    """For the relations of u to x and of x to w, which of the eight kinds of first two edges there are: [9, 9, 8]."""
    table = np.zeros((9, 9, 8), dtype=np.float32)
    for (first, second), kind in itertools.product(itertools.product(range(9), repeat=2), range(8)):
        here = first // 3 - 1 if kind < 4 else first % 3 - 1
        there = second // 3 - 1 if kind % 4 < 2 else second % 3 - 1
        table[first, second, kind] = here * there == (1 if kind % 2 == 0 else -1)
    return table


_AGREEMENTS = _agreements()


@njit(cache=True, nogil=True)
@no_type_check
def _spread(start, node, relation, u, weight, max_degree, table, agreement, is_seen, seen):
    """Lay out how u and every w two edges away agree: over which directions, and with equal signs or not."""
    count = 0
    for i in range(start[u], start[u + 1]):
        x = node[i]
        if start[x + 1] - start[x] > max_degree:
            continue
        for j in range(start[x], start[x + 1]):
            w = node[j]
            if not is_seen[w]:
                is_seen[w] = True
                seen[count] = w
                count += 1
            for kind in range(8):
                agreement[w, kind] += weight[x] * table[relation[i], relation[j], kind]
    return count


@njit(cache=True, nogil=True)
@no_type_check
def _three_edges(start, node, relation, source, target, first, begin, end, weight, max_degree, table, counts):
    num_nodes = len(start) - 1
    agreement = np.zeros((num_nodes, 8), np.float32)
    is_seen = np.zeros(num_nodes, np.bool_)
    seen = np.empty(num_nodes, np.int32)
    sums = np.zeros((9, 8), np.float32)  # by the relation of v to w
    for group in range(begin, end):
        u = source[first[group]]
        count = _spread(start, node, relation, u, weight, max_degree, table, agreement, is_seen, seen)
        for pair in range(first[group], first[group + 1]):
            v = target[pair]
            between = relation_of(start, node, relation, u, v)
            over_v = weight[v] if start[v + 1] - start[v] <= max_degree else np.float32(0.0)
            sums[:] = 0.0
            for i in range(start[v], start[v + 1]):
                w = node[i]
                if w != u and is_seen[w]:
                    for kind in range(8):  # without the paths over x = v
                        along = agreement[w, kind] - over_v * table[between, relation[i], kind]
                        sums[relation[i], kind] += weight[w] * along
            for last in range(9):
                for kind in range(8):
                    _add_hop(counts, pair, 4 * kind, last, max(sums[last, kind], np.float32(0.0)))
        for i in range(count):
            is_seen[seen[i]] = False
            agreement[seen[i]] = 0.0


@njit(cache=True, nogil=True)
@no_type_check
def _two_paths(start, node, relation, source, target, first, begin, end, counts):
    known = np.full(len(start) - 1, NOTHING, np.int8)
    for group in range(begin, end):
        u = source[first[group]]
        for i in range(start[u], start[u + 1]):
            known[node[i]] = relation[i]
        for pair in range(first[group], first[group + 1]):
            v = target[pair]
            for i in range(start[v], start[v + 1]):
                there = known[node[i]]
                forth, back = there // 3 - 1, there % 3 - 1
                on, off = relation[i] // 3 - 1, relation[i] % 3 - 1
                counts[pair, 0] += (forth + back) * (on + off)
                counts[pair, 1] += (abs(forth) + abs(back)) * (abs(on) + abs(off))
        for i in range(start[u], start[u + 1]):
            known[node[i]] = NOTHING
