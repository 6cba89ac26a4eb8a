"""The evidence of `triads` and a graph network's log-odds, combined by a small network (stacking, Wolpert, 1992)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from thrifty import catalogue
from thrifty.errors import SettingError
from thrifty.graph.combine import Combined, Learning, combine
from thrifty.graph.features import pair_features
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.scorer import Curriculum, Fitted, Tensors
from thrifty.graph.signed import Nodes, SignedGraph, need_both_signs
from thrifty.graph.train import Device
from thrifty.progress import Track

_HELD_OUT = 0.1


@dataclass(frozen=True)
class Stack:
    """Pair features (62, as in `triads`) and the log-odds of `inner`, by regression and networks in equal parts.

    `inner` must judge a training edge without having heard of it, as `masked_gnn` does; the log-odds of other scorers
    are too sure of what they learnt from, and the combination would trust them too much.
    """

    inner: str = "masked_gnn"
    hidden: int = 64
    networks: int = 2
    epochs: int = 30
    max_degree: int = 5000
    device: Device = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot be stacked."""
        if min(self.hidden, self.networks, self.epochs, self.max_degree) < 1:
            raise SettingError(f"{self}: use sizes of 1 or more")
        if self.inner not in catalogue.names("graph", "scorers") or self.inner == "stack":
            raise SettingError(f"Stack: inner={self.inner}; use another scorer, such as masked_gnn")

    def fit(self, graph: SignedGraph, seed: int, curriculum: Curriculum | None, track: Track) -> "FittedStack":
        """Fit `inner`, which may follow the curriculum, and then the combination, once without a tenth of the edges."""
        need_both_signs(graph)
        inner = self._inner().fit(graph, seed, curriculum, track)
        neighbours = Neighbours.of(graph)
        features = _features(neighbours, inner, graph.source, graph.target, self.max_degree)
        is_positive, one = graph.sign > 0, self._learning()
        held_out = np.random.default_rng(seed).random(graph.num_edges) < _HELD_OUT
        known = np.full(graph.num_edges, np.nan)
        first = combine(features[~held_out], is_positive[~held_out], one, seed, self.device, track)
        known[held_out] = first.log_odds(features[held_out])
        combined = combine(features, is_positive, one, seed, self.device, track)
        return FittedStack(self, neighbours, inner, combined, known)

    def restore(self, graph: SignedGraph, tensors: Tensors) -> "FittedStack":
        """The parts that were saved, over the edges of `graph`."""
        parts: dict[str, Tensors] = {"inner": {}, "combined": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        inner = self._inner().restore(graph, parts["inner"])
        return FittedStack(
            self, Neighbours.of(graph), inner, Combined.restored(parts["combined"], self._learning()), None
        )

    def _inner(self) -> Any:
        return catalogue.find("graph", self.inner, "scorers")()

    def _learning(self) -> Learning:
        return Learning(hidden=self.hidden, networks=self.networks, epochs=self.epochs)


@dataclass(frozen=True)
class FittedStack:
    """The inner scorer, the combination, and the edges that the features are read from."""

    settings: Stack
    neighbours: Neighbours
    inner: Fitted
    combined: Combined
    known: Float64[np.ndarray, " edges"] | None

    def log_odds(self, source: Nodes, target: Nodes) -> Float64[np.ndarray, " pairs"]:
        """The combined evidence for a positive edge from each source to its target."""
        features = _features(self.neighbours, self.inner, source, target, self.settings.max_degree)
        return self.combined.log_odds(features)

    def left_out(self, graph: SignedGraph) -> Float64[np.ndarray, " edges"] | None:
        """Those of the tenth that a first combination had not learnt from; NaN for the others."""
        return self.known

    def tensors(self) -> Tensors:
        """Those of the inner scorer and of the combination."""
        parts = {"inner": self.inner.tensors(), "combined": self.combined.tensors()}
        return {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


def _features(
    neighbours: Neighbours, inner: Fitted, source: Nodes, target: Nodes, max_degree: int
) -> Float32[np.ndarray, "pairs columns"]:
    odds = inner.log_odds(source, target).astype(np.float32)
    return np.concatenate([pair_features(neighbours, source, target, 3, max_degree), odds[:, None]], axis=1)
