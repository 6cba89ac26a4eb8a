"""What tells how likely an edge is positive: the contract of everything in `thrifty/graph/scorers`."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from thrifty.graph.signed import Nodes, SignedGraph
from thrifty.progress import Track

Tensors = dict[str, np.ndarray]
"""What was learnt, by name: plain arrays of numbers, so that a model file needs no pickle."""


@runtime_checkable
class Curriculum(Protocol):
    """Which edges a scorer that learns in epochs may count in its loss, from easy to hard (SGA, section 4.3)."""

    def edges_at(self, progress: float) -> Int64[np.ndarray, " chosen"]:
        """Positions of the training edges in the loss when the share `progress` (0 to 1) of the epochs is done."""
        ...


@runtime_checkable
class Fitted(Protocol):
    """A scorer that has seen the edges of a graph."""

    def log_odds(self, source: Nodes, target: Nodes) -> Float64[np.ndarray, " pairs"]:
        """log P(positive) / P(negative) of an edge from each source to its target, as if that edge were not known.

        The prior of the training edges is in it; a further calibration is not.
        """
        ...

    def left_out(self, graph: SignedGraph) -> Float64[np.ndarray, " edges"] | None:
        """The log-odds of the edges of `graph`, which was learnt from, each as told by what did not learn from it.

        NaN where it cannot tell, None where that takes another fit. Calibration and threshold are read from them
        (`thrifty/graph/model.py`).
        """
        ...

    def tensors(self) -> Tensors:
        """What `Scorer.restore` needs beside the graph."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Settings of a way to score: a frozen dataclass."""

    def fit(self, graph: SignedGraph, seed: int, curriculum: Curriculum | None, track: Track) -> Fitted:
        """Learn from all edges of `graph`. The same seed gives the same result on the same machine. A scorer without
        epochs raises `SettingError` where a curriculum is given."""
        ...

    def restore(self, graph: SignedGraph, tensors: Tensors) -> Fitted:
        """The fitted scorer that `tensors()` was taken from; `graph` is what it was fitted to."""
        ...
