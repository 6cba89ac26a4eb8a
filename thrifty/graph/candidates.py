# ruff: noqa: ANN001, ANN202 -- numba compiles the functions without annotations
"""Pairs of nodes that an edge might be added between: all pairs by a bound, or those with a common neighbour."""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float32, Float64, Int8
from numba import njit

from thrifty.graph.neighbours import Neighbours
from thrifty.graph.scorer import Fitted
from thrifty.graph.signed import Nodes

ClassTerms = Float32[np.ndarray, "nodes 3"]
_SHIFT = (
    44  # of the bits of a positive number: exponent and 8 bits after the point are left, an order of steps of 0.4 %
)
_BINS = 1 << (63 - _SHIFT)


class Candidates(NamedTuple):
    """Pairs with the sign that an edge between them would have, and the probability of that sign; best first."""

    source: Nodes
    target: Nodes
    sign: Int8[np.ndarray, " pairs"]
    probability: Float64[np.ndarray, " pairs"]


def class_probabilities(
    fitted: Fitted, source: Nodes, target: Nodes
) -> tuple[Float64[np.ndarray, " pairs"], Float64[np.ndarray, " pairs"]]:
    """P(positive edge) and P(negative edge) of each pair: of three classes where the scorer knows `none` as well."""
    terms = getattr(fitted, "class_terms", None)
    if terms is None:
        positive = 1 / (1 + np.exp(-np.clip(fitted.log_odds(source, target), -500, 500)))
        return positive, 1 - positive
    a, b = terms()
    logits = a[source].astype(np.float64) + b[target]
    logits -= logits.max(axis=1, keepdims=True)
    shares = np.exp(logits)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares[:, 0], shares[:, 1]


def all_pairs(terms: tuple[ClassTerms, ClassTerms], sign: int, least: float, most: int) -> Candidates:
    """Of all pairs i < j, the at most `most` where the class of `sign` has the highest probability, `least` or more.

    The logit of a class is a_i + b_j, so 1 / p - 1 = exp(x_i + y_j) + exp(s_i + t_j), two products of numbers known
    for each node: O(nodes^2) multiplications, O(most) memory (four numbers a node in place of the embeddings).
    """
    wanted, other = (0, 1) if sign > 0 else (1, 0)
    a, b = (x.astype(np.float64) for x in terms)
    sides = [np.exp(np.clip(x[:, rival] - x[:, wanted], -80, 80)) for x in (a, b) for rival in (other, 2)]
    bound = 1 / max(least, 1e-9) - 1
    counts = np.zeros(_BINS, dtype=np.int64)
    _count(sides[0], sides[1], sides[2], sides[3], bound, counts)
    total = np.cumsum(counts)
    last = min(int(np.searchsorted(total, most)), _BINS - 1)  # the bin in which the best `most` end
    found = min(int(total[last]), 2 * most + 1000)  # more than that only where very many are exactly alike
    source, target = np.empty(found, dtype=np.int32), np.empty(found, dtype=np.int32)
    value = np.empty(found, dtype=np.float64)
    found = _collect(sides[0], sides[1], sides[2], sides[3], bound, last, source, target, value)
    source, target, value = source[:found], target[:found], value[:found]
    order = np.lexsort((target, source, value))[:most]
    signs = np.full(len(order), sign, dtype=np.int8)
    return Candidates(source[order], target[order], signs, 1 / (1 + value[order]))


def near_pairs(neighbours: Neighbours, most: int, seed: int) -> tuple[Nodes, Nodes]:
    """Pairs i < j, not connected, with a common neighbour; a random part where there are more than `most`."""
    count = _near(neighbours.start, neighbours.node, np.uint64(seed), 1.0, np.empty((0, 2), dtype=np.int32))
    share = min(1.0, most / max(count, 1))
    kept = _near(neighbours.start, neighbours.node, np.uint64(seed), share, np.empty((0, 2), dtype=np.int32))
    pairs = np.empty((kept, 2), dtype=np.int32)
    _near(neighbours.start, neighbours.node, np.uint64(seed), share, pairs)
    return pairs[:most, 0].copy(), pairs[:most, 1].copy()


@njit(cache=True, nogil=True)
@no_type_check
def _count(first, second, first_other, second_other, bound, counts):
    number = np.zeros(1, np.float64)
    bits = number.view(np.int64)
    for i in range(len(first)):
        for j in range(i + 1, len(first)):
            value = first[i] * first_other[j] + second[i] * second_other[j]
            if value <= bound:
                number[0] = value
                counts[bits[0] >> _SHIFT] += 1


@njit(cache=True, nogil=True)
@no_type_check
def _collect(first, second, first_other, second_other, bound, last, source, target, values):
    number = np.zeros(1, np.float64)
    bits = number.view(np.int64)
    found = 0
    for i in range(len(first)):
        for j in range(i + 1, len(first)):
            value = first[i] * first_other[j] + second[i] * second_other[j]
            if value <= bound:
                number[0] = value
                if bits[0] >> _SHIFT <= last and found < len(source):
                    source[found], target[found], values[found] = i, j, value
                    found += 1
    return found


@njit(cache=True, nogil=True)
@no_type_check
def _chosen(i, j, seed, share):
    """A fixed random choice for each pair (the finalizer of MurmurHash3)."""
    x = np.uint64(i) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(j) + seed * np.uint64(0xD1B54A32D192ED03)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    x ^= x >> np.uint64(33)
    return np.float64(x >> np.uint64(11)) * 1.1102230246251565e-16 < share


@njit(cache=True, nogil=True)
@no_type_check
def _near(start, node, seed, share, pairs):
    """Count the pairs, and write them where there is room."""
    found = 0
    mark = np.full(len(start) - 1, -1, np.int32)
    for i in range(len(start) - 1):
        for a in range(start[i], start[i + 1]):
            mark[node[a]] = i
        mark[i] = i
        for a in range(start[i], start[i + 1]):
            for b in range(start[node[a]], start[node[a] + 1]):
                j = node[b]
                if mark[j] != i:
                    mark[j] = i
                    if j > i and _chosen(i, j, seed, share):
                        if found < len(pairs):
                            pairs[found, 0], pairs[found, 1] = i, j
                        found += 1
    return found
