"""Edges whose sign a model disbelieves, with what speaks against it: where a trust or moderation desk starts."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from thrifty.graph.balance import balance
from thrifty.graph.features import degrees
from thrifty.graph.model import SignModel
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.signed import SignedGraph


@dataclass(frozen=True)
class Audit:
    """The audited edges from the most to the least suspicious, and facts about each, all without the edge itself.

    `belief` is P(the sign that the edge has). `degrees` are those of `features.degrees`; `reverse` is the sign of the
    edge back, 0 where there is none; `balanced` and `unbalanced` are triangles in the model's graph.
    """

    edges: SignedGraph
    place: Int64[np.ndarray, " edges"]
    belief: Float64[np.ndarray, " edges"]
    degrees: Int64[np.ndarray, "edges 8"]
    reverse: np.ndarray
    balanced: Float64[np.ndarray, " edges"]
    unbalanced: Float64[np.ndarray, " edges"]

    def reason(self, row: int) -> str:
        """What speaks against the sign of the edge in this row, in words; what speaks for it is not told."""
        out_positive, out_negative, in_positive, in_negative = (int(count) for count in self.degrees[row, :4])
        is_positive = self.edges.sign[row] > 0
        against, word = ((out_negative, "negative"), (in_negative, "negative")), "negative"
        if not is_positive:
            against, word = ((out_positive, "positive"), (in_positive, "positive")), "positive"
        told = []
        if self.reverse[row] and (self.reverse[row] > 0) != is_positive:
            told.append(f"the answer of the target is {word}")
        triangles = int(self.balanced[row] + self.unbalanced[row])
        if self.unbalanced[row] > self.balanced[row]:
            told.append(f"{_number(self.unbalanced[row])} of {triangles} triangles are unbalanced")
        incoming, outgoing = in_positive + in_negative, out_positive + out_negative
        if 2 * against[1][0] > incoming:
            told.append(f"{against[1][0]} of {incoming} others' edges to the target are {word}")
        if 2 * against[0][0] > outgoing:
            told.append(f"{against[0][0]} of {outgoing} other edges of the source are {word}")
        if not told:
            told.append("longer paths and the mix of degrees" if self.degrees[row].any() else "nothing else is known")
        return "; ".join(told)

    def columns(self, most: int | None = None) -> dict[str, np.ndarray]:
        """A table of the `most` most suspicious edges, with the ids of the input."""
        count = self.edges.num_edges if most is None else min(most, self.edges.num_edges)
        rows, names = slice(0, count), self.edges.names
        facts = ("source_out_positive", "source_out_negative", "target_in_positive", "target_in_negative")
        return {
            "source": names[self.edges.source[rows]],
            "target": names[self.edges.target[rows]],
            "sign": self.edges.sign[rows],
            "probability_of_sign": self.belief[rows],
            "reverse_sign": self.reverse[rows],
            "balanced_triangles": self.balanced[rows],
            "unbalanced_triangles": self.unbalanced[rows],
            **{name: self.degrees[rows, place] for place, name in enumerate(facts)},
            "reason": np.array([self.reason(row) for row in range(count)], dtype=object),
        }


def audit(model: SignModel, edges: SignedGraph) -> Audit:
    """Rank `edges`, which are numbered and named as the model's graph, by how little the model believes their signs.

    The model scores every edge as if it were not known; a graph network that learnt from an edge half remembers it all
    the same, so the default scorer is the better auditor.
    """
    positive = model.probability(edges.source, edges.target)
    belief = np.where(edges.sign > 0, positive, 1 - positive)
    order = np.argsort(belief, kind="stable")
    ranked = edges.take(order)
    neighbours = Neighbours.of(model.graph)
    _, reverse = neighbours.between(ranked.source, ranked.target)
    balanced, unbalanced = balance(neighbours, ranked.source, ranked.target, ranked.sign)
    facts = degrees(neighbours, ranked.source, ranked.target)
    return Audit(ranked, order, belief[order], facts, reverse, balanced, unbalanced)


def _number(value: float) -> str:
    return f"{value:g}"
