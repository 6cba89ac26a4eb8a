"""A model: calibrated on edges it did not learn from, the same after saving, and refused when it is no model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from thrifty.errors import DataError
from thrifty.graph import metrics
from thrifty.graph.model import SignModel, held_out_edges
from thrifty.graph.scorers.triads import Triads
from thrifty.graph.signed import SignedGraph


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


def test_calibration_undoes_a_shift(planted: SignedGraph) -> None:
    train, test = halves(planted)
    model = SignModel.fit(train, Triads())
    shifted = replace(model, slope=3.0, offset=2.0)
    again = shifted.calibrated(test)
    before, after = (one.probability(test.source, test.target) for one in (shifted, again))
    error = [metrics.calibration_error(one, test.sign > 0) for one in (before, after)]
    assert error[1] < error[0] / 2


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
