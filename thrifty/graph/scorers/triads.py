"""Logistic regression on degrees, reverse edge, signed paths of two and three edges (Leskovec et al., CHI 2010)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64
from sklearn.linear_model import LogisticRegression

from thrifty import settings
from thrifty.errors import SettingError
from thrifty.graph.features import pair_features
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.scorer import Curriculum, Tensors
from thrifty.graph.signed import Nodes, SignedGraph, need_both_signs
from thrifty.progress import Track

_CHUNK = 500_000  # pairs described at once: 250 MB


@dataclass(frozen=True)
class Triads:
    """A weight for each kind of evidence around a pair.

    `reach` 2 reads common neighbours (30 features), 3 also paths of three edges (62). `strength` is the inverse of the
    ridge penalty on standardised features. At most `max_edges` random edges are learnt from; their surroundings are
    always the whole graph. Every training edge is described as if it were not known.
    """

    reach: Literal[2, 3] = 3
    strength: float = 1.0
    max_degree: int = 5000
    max_edges: int = 300_000

    def __post_init__(self) -> None:
        """Refuse values that do not exist."""
        settings.check(self)
        if self.strength <= 0 or self.max_degree < 1 or self.max_edges < 2:
            raise SettingError(
                f"Triads: strength={self.strength}, max_degree={self.max_degree}, max_edges={self.max_edges}; "
                "use a strength above 0, a degree of 1 or more and 2 edges or more"
            )

    def fit(self, graph: SignedGraph, seed: int, curriculum: Curriculum | None, track: Track) -> "FittedTriads":
        """Learn the weights. Raises `DataError` where all signs are equal, `SettingError` for a curriculum."""
        if curriculum is not None:
            raise SettingError("Triads learns in one go, without epochs; a curriculum needs a scorer such as sgcn")
        need_both_signs(graph)
        neighbours = Neighbours.of(graph)
        chosen = np.arange(graph.num_edges)
        if graph.num_edges > self.max_edges:
            chosen = np.sort(np.random.default_rng(seed).choice(graph.num_edges, self.max_edges, replace=False))
        part = graph.take(chosen)
        features = _described(self, neighbours, part.source, part.target, track)
        mean = features.mean(axis=0, dtype=np.float64)
        scale = np.maximum(features.std(axis=0, dtype=np.float64), 1e-6)
        features -= mean.astype(np.float32)
        features /= scale.astype(np.float32)
        regression = LogisticRegression(C=self.strength, solver="newton-cholesky", max_iter=100)
        regression.fit(features, part.sign > 0)
        coefficients, intercept = regression.coef_[0].astype(np.float64), float(np.ravel(regression.intercept_)[0])
        weight = coefficients / scale
        known = np.full(graph.num_edges, np.nan)
        known[chosen] = features @ coefficients + intercept
        return FittedTriads(self, neighbours, weight, intercept - float(weight @ mean), known)

    def restore(self, graph: SignedGraph, tensors: Tensors) -> "FittedTriads":
        """The weights that were saved, over the edges of `graph`."""
        return FittedTriads(self, Neighbours.of(graph), tensors["weight"], float(tensors["offset"][0]))


@dataclass(frozen=True)
class FittedTriads:
    """A weight for each feature, and the edges that the features are read from."""

    settings: Triads
    neighbours: Neighbours
    weight: Float64[np.ndarray, " columns"]
    offset: float
    known: Float64[np.ndarray, " edges"] | None = None

    def log_odds(self, source: Nodes, target: Nodes) -> Float64[np.ndarray, " pairs"]:
        """Weighted evidence for a positive edge from each source to its target."""
        result = np.empty(len(source), dtype=np.float64)
        for start in range(0, len(source), _CHUNK):
            part = slice(start, start + _CHUNK)
            one = self.settings
            features = pair_features(self.neighbours, source[part], target[part], one.reach, one.max_degree)
            result[part] = features @ self.weight + self.offset
        return result

    def left_out(self, graph: SignedGraph) -> Float64[np.ndarray, " edges"]:
        """Those that were learnt from: each is described as if it were not known, and the weights are few."""
        return self.log_odds(graph.source, graph.target) if self.known is None else self.known

    def tensors(self) -> Tensors:
        """The weights."""
        return {"weight": self.weight, "offset": np.array([self.offset])}


def _described(one: Triads, neighbours: Neighbours, source: Nodes, target: Nodes, track: Track) -> np.ndarray:
    starts = range(0, len(source), _CHUNK)
    parts = []
    for start in track(starts, "features", len(starts)):
        part = slice(start, start + _CHUNK)
        parts.append(pair_features(neighbours, source[part], target[part], one.reach, one.max_degree))
    return np.concatenate(parts)
