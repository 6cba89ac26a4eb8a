"""A fitted scorer whose logits are a term of the source plus a term of the target."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from thrifty.graph.scorer import Tensors
from thrifty.graph.signed import Nodes, SignedGraph

ClassTerms = Float32[np.ndarray, "nodes 3"]


@dataclass(frozen=True)
class Terms:
    """The logits of (positive, negative, none) for an edge i -> j are `a[i] + b[j]`.

    `prior` is added to the log-odds: the head is trained as if both signs were equally frequent.
    """

    a: ClassTerms
    b: ClassTerms
    prior: float

    def class_terms(self) -> tuple[ClassTerms, ClassTerms]:
        """a and b: log-softmax(a[i] + b[j]) are the log-probabilities of (positive, negative, none), without prior."""
        return self.a, self.b

    def log_odds(self, source: Nodes, target: Nodes) -> Float64[np.ndarray, " pairs"]:
        """log P(positive) / P(negative)."""
        a, b = (x[:, 0].astype(np.float64) - x[:, 1] for x in (self.a, self.b))
        return a[source] + b[target] + self.prior

    def left_out(self, graph: SignedGraph) -> None:
        """Unknown: every edge was learnt from."""

    def tensors(self) -> Tensors:
        """Terms and prior."""
        return {"a": self.a, "b": self.b, "prior": np.array([self.prior])}

    @staticmethod
    def restored(tensors: Tensors) -> "Terms":
        """What `tensors()` was taken from."""
        return Terms(tensors["a"], tensors["b"], float(tensors["prior"][0]))


def log_prior(graph: SignedGraph) -> float:
    """log of positive over negative edges, each counted once more than there are, so that it is finite."""
    positive = int((graph.sign > 0).sum())
    return float(np.log((positive + 1) / (graph.num_edges - positive + 1)))
