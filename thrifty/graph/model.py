"""A scorer that has learnt, with probabilities that mean what they say: predict, save, load."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression

from thrifty import catalogue, settings
from thrifty.errors import DataError, SettingError
from thrifty.files import replacing
from thrifty.graph.metrics import best_threshold
from thrifty.graph.scorer import Curriculum, Fitted, Scorer, Tensors
from thrifty.graph.signed import Nodes, SignedGraph, need_both_signs
from thrifty.progress import Track, silent

_FORMAT = "thrifty graph 1"
_HELD_OUT = 0.1
Prepare = Callable[[SignedGraph], SignedGraph]
Pace = Callable[[SignedGraph], Curriculum]


@dataclass(frozen=True)
class SignModel:
    """P(positive) = 1 / (1 + exp(-(slope * log-odds + offset))); a label is positive where it reaches `threshold`."""

    name: str
    scorer: Scorer
    graph: SignedGraph
    fitted: Fitted
    slope: float = 1.0
    offset: float = 0.0
    threshold: float = 0.5

    @staticmethod
    def fit(
        graph: SignedGraph,
        scorer: Scorer,
        seed: int = 0,
        track: Track = silent,
        prepare: Prepare | None = None,
        pace: Pace | None = None,
    ) -> "SignModel":
        """Learn from `graph`, and set slope, offset and threshold by edges that were left out (Platt, 1999).

        `prepare` changes the graph before it is learnt from (augmentation), `pace` makes a curriculum for the graph
        that results. Where the scorer cannot tell what it would say of an edge that it had not learnt from, or the
        graph was changed, a tenth of the edges is held out and a second fit, to the others, is asked about them.
        Raises `DataError` where there is nothing to learn.
        """
        need_both_signs(graph)
        model = SignModel.uncalibrated(graph, scorer, seed, track, prepare, pace)
        odds = None if prepare else model.fitted.left_out(graph)
        if odds is not None:
            told = np.isfinite(odds)
            return model._calibrated(odds[told], graph.sign[told])
        held_out = held_out_edges(graph, seed)
        other = SignModel.uncalibrated(graph.take(~held_out), scorer, seed, track, prepare, pace)
        edges = graph.take(held_out)
        return model._calibrated(other.fitted.log_odds(edges.source, edges.target), edges.sign)

    @staticmethod
    def uncalibrated(
        graph: SignedGraph,
        scorer: Scorer,
        seed: int = 0,
        track: Track = silent,
        prepare: Prepare | None = None,
        pace: Pace | None = None,
    ) -> "SignModel":
        """Learn from `graph`; the log-odds are taken as they come and the threshold is 0.5, as papers do."""
        graph = graph if prepare is None else prepare(graph)
        fitted = scorer.fit(graph, seed, None if pace is None else pace(graph), track)
        return SignModel(catalogue.name_of(scorer), scorer, graph, fitted)

    def _calibrated(self, odds: Float64[np.ndarray, " edges"], sign: Int8[np.ndarray, " edges"]) -> "SignModel":
        """The same scores, with slope, offset and threshold from edges that were not learnt from."""
        platt = LogisticRegression(C=1e6).fit(odds[:, None], sign > 0)
        model = replace(self, slope=float(platt.coef_[0, 0]), offset=float(np.ravel(platt.intercept_)[0]))
        return replace(model, threshold=best_threshold(model._probability_of(odds), sign))

    def probability(self, source: Nodes, target: Nodes) -> Float64[np.ndarray, " pairs"]:
        """P(positive) of an edge from each source to its target, as if that edge were not known."""
        return self._probability_of(self.fitted.log_odds(source, target))

    def _probability_of(self, odds: Float64[np.ndarray, " pairs"]) -> Float64[np.ndarray, " pairs"]:
        return 1 / (1 + np.exp(-np.clip(self.slope * odds + self.offset, -500, 500)))

    def save(self, path: Path) -> None:
        """Write the model with its graph to one safetensors file, whole or not at all."""
        tensors = {f"scorer.{name}": value for name, value in self.fitted.tensors().items()}
        tensors |= {f"graph.{name}": value for name, value in _graph_tensors(self.graph).items()}
        about = {
            "format": _FORMAT,
            "scorer": self.name,
            "settings": json.dumps(settings.shown(self.scorer)),
            "calibration": json.dumps([self.slope, self.offset, self.threshold]),
        }
        with replacing(path) as temporary:
            save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, temporary, about)

    @staticmethod
    def load(path: Path) -> "SignModel":
        """Read what `save` wrote. Raises `DataError` for anything else."""
        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    raise DataError(f"{path} is no signed-graph model; give a file that thrifty graph fit wrote")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no dictionary
            chosen = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in json.loads(about["settings"]).items()
            }
            scorer = catalogue.find("graph", about["scorer"], "scorers")(**chosen)
            graph = _graph_of(_part(tensors, "graph."))
            fitted = scorer.restore(graph, _part(tensors, "scorer."))
            return SignModel(about["scorer"], scorer, graph, fitted, *json.loads(about["calibration"]))
        except (OSError, SafetensorError, SettingError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} cannot be read as a model ({error}); give a file that fit wrote") from error


def held_out_edges(graph: SignedGraph, seed: int, share: float = _HELD_OUT) -> Bool[np.ndarray, " edges"]:
    """A random `share` of the positive and of the negative edges, at least one of each; as a mask.

    Raises `DataError` where a sign has fewer than two edges.
    """
    chance = np.random.default_rng(seed)
    chosen = np.zeros(graph.num_edges, dtype=bool)
    for sign, word in ((1, "positive"), (-1, "negative")):
        places = np.flatnonzero(graph.sign == sign)
        if len(places) < 2:
            raise DataError(f"{len(places)} {word} edges; a part of them must be held out, give at least 2")
        chosen[chance.permutation(places)[: max(1, round(share * len(places)))]] = True
    return chosen


def _graph_tensors(graph: SignedGraph) -> Tensors:
    """The edges and the names of the nodes; texts as UTF-8 with the end of each."""
    edges = {"source": graph.source, "target": graph.target, "sign": graph.sign}
    if graph.names.dtype != object:
        return edges | {"names": graph.names.astype(np.int64)}
    texts = [str(name).encode() for name in graph.names]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return edges | {"name_bytes": np.frombuffer(b"".join(texts), dtype=np.uint8), "name_ends": ends}


def _graph_of(tensors: dict[str, Any]) -> SignedGraph:
    if "names" in tensors:
        names = tensors["names"]
    else:
        whole, ends = tensors["name_bytes"].tobytes(), tensors["name_ends"].tolist()
        names = np.empty(len(ends), dtype=object)
        names[:] = [whole[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    graph = SignedGraph(tensors["source"], tensors["target"], tensors["sign"], names)
    if graph.num_edges and max(graph.source.max(), graph.target.max()) >= graph.num_nodes:
        raise DataError("an edge names a node that has no name")
    graph.check()
    return graph


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
