"""A model: calibrated on edges it did not learn from, the same after saving, and refused when it is no model."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from thrifty.errors import DataError
from thrifty.graph import metrics
from thrifty.graph.model import SignModel, held_out_edges
from thrifty.graph.scorer import Curriculum, Tensors
from thrifty.graph.scorers.triads import FittedTriads, Triads
from thrifty.graph.signed import SignedGraph
from thrifty.progress import Track


def halves(graph: SignedGraph) -> tuple[SignedGraph, SignedGraph]:
    test = held_out_edges(graph, 1, 0.3)
    return graph.take(~test), graph.take(test)


def test_a_planted_pattern_is_learnt(planted: SignedGraph) -> None:
    train, test = halves(planted)
    model = SignModel.fit(train, Triads())
    found = metrics.measure(model.probability(test.source, test.target), test.sign, model.threshold)
    assert found["auc"] > 0.8
    assert found["ece"] < 0.1
    assert found["f1_macro"] > 0.7


def test_held_out_edges_have_both_signs(graph: SignedGraph) -> None:
    chosen = held_out_edges(graph, 0)
    assert chosen.sum() == pytest.approx(graph.num_edges / 10, abs=1)
    assert (graph.sign[chosen] > 0).mean() == pytest.approx(graph.positive_share, abs=0.05)
    with pytest.raises(DataError, match="1 negative edges"):
        held_out_edges(replace(graph, sign=np.where(np.arange(graph.num_edges) == 0, -1, 1).astype(np.int8)), 0)


@dataclass(frozen=True)
class Loud:
    """Triads that shouts: log-odds three times too large and shifted, and silent about what it learnt from."""

    inner: Triads

    def fit(self, graph: SignedGraph, seed: int, curriculum: Curriculum | None, track: Track) -> "FittedLoud":
        return FittedLoud(self.inner.fit(graph, seed, curriculum, track))

    def restore(self, graph: SignedGraph, tensors: Tensors) -> "FittedLoud":
        return FittedLoud(self.inner.restore(graph, tensors))


@dataclass(frozen=True)
class FittedLoud:
    inner: FittedTriads

    def log_odds(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        return 3 * self.inner.log_odds(source, target) + 2

    def left_out(self, graph: SignedGraph) -> None:
        return None

    def tensors(self) -> Tensors:
        return self.inner.tensors()


def test_calibration_on_held_out_edges_undoes_scale_and_shift(planted: SignedGraph) -> None:
    train, test = halves(planted)
    error = [
        metrics.calibration_error(model.probability(test.source, test.target), test.sign > 0)
        for model in (SignModel.uncalibrated(train, Loud(Triads())), SignModel.fit(train, Loud(Triads())))
    ]
    assert error[1] < error[0] / 2


def test_a_changed_graph_is_calibrated_on_edges_that_it_never_held(planted: SignedGraph) -> None:
    seen = []

    def prepare(graph: SignedGraph) -> SignedGraph:
        seen.append(graph.num_edges)
        return graph.take(np.arange(graph.num_edges - 10))

    SignModel.fit(planted, Triads(), prepare=prepare)
    assert seen == [planted.num_edges, planted.num_edges - held_out_edges(planted, 0).sum()]


@pytest.mark.parametrize("names", ["numbers", "texts"])
def test_a_saved_model_says_the_same(graph: SignedGraph, tmp_path: Path, names: str) -> None:
    if names == "texts":
        graph = replace(graph, names=np.array([f"née {node}" for node in range(graph.num_nodes)], dtype=object))
    model = SignModel.fit(graph, Triads(reach=2))
    model.save(tmp_path / "model.safetensors")
    again = SignModel.load(tmp_path / "model.safetensors")
    assert again.scorer == model.scorer
    assert again.graph.names.tolist() == graph.names.tolist()
    assert again.threshold == model.threshold
    probability = [one.probability(graph.source, graph.target) for one in (model, again)]
    assert (probability[0] == probability[1]).all()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no model")
    save_file({"a": np.zeros(1)}, tmp_path / "other")
    for name in ("text", "other", "absent"):
        with pytest.raises(DataError, match=r"that .*fit wrote"):
            SignModel.load(tmp_path / name)


def test_a_model_with_a_damaged_graph_is_refused(graph: SignedGraph, tmp_path: Path) -> None:
    model = SignModel.fit(graph, Triads(reach=2))
    replace(model, graph=replace(graph, names=graph.names[:5])).save(tmp_path / "model")
    with pytest.raises(DataError, match="no name"):
        SignModel.load(tmp_path / "model")
