"""Tables: every pair keeps its row, every edge its origin, and what was written can be read back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from thrifty.errors import DataError
from thrifty.graph.apply import ORIGINS, Augmented, apply
from thrifty.graph.balance import balance
from thrifty.graph.job import GraphJob
from thrifty.graph.methods.sga import Sga
from thrifty.graph.model import SignModel
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.pairs import read_pairs
from thrifty.graph.predict import augmented_tables, beside, edges_of_model, predict_pairs
from thrifty.graph.reading import read
from thrifty.graph.scorers.triads import Triads
from thrifty.graph.signed import SignedGraph
from thrifty.graph.writing import write_table


def named(graph: SignedGraph, *names: object) -> SignedGraph:
    return replace(graph, names=np.array(names, dtype=object if isinstance(names[0], str) else np.int64))


def told(graph: SignedGraph) -> set[tuple[object, object, int]]:
    """The edges with the names of their nodes."""
    names = graph.names.tolist()
    return {(names[s], names[t], int(sign)) for s, t, sign in zip(graph.source, graph.target, graph.sign, strict=True)}


@pytest.fixture
def model(graph: SignedGraph) -> SignModel:
    """Fitted to a graph whose nodes are called 100, 101, ..."""
    return SignModel.fit(replace(graph, names=graph.names + 100), Triads(reach=2))


def test_a_pair_with_an_unknown_node_keeps_its_row_without_a_prediction(model: SignModel) -> None:
    pairs = read_pairs(pl.DataFrame({"source": [7, 101, 105, None], "target": [101, 102, 7, 101]}), model.graph.names)
    table = predict_pairs(model, pairs)
    assert table["source"].tolist() == [7, 101, 105, None]
    assert table["target"].tolist() == [101, 102, 7, 101]
    assert np.isnan(table["probability"]).tolist() == [True, False, True, True]
    assert (table["label"] == 0).tolist() == [True, False, True, True]
    one = np.array([1], dtype=np.int32), np.array([2], dtype=np.int32)
    assert table["probability"][1] == model.probability(*one)[0]


def test_a_label_is_positive_where_the_probability_reaches_the_threshold(model: SignModel) -> None:
    frame = pl.DataFrame({"source": [100, 101, 102], "target": [103, 104, 105]})
    pairs = read_pairs(frame, model.graph.names)
    low, middle, high = np.argsort(predict_pairs(model, pairs)["probability"])
    threshold = float(predict_pairs(model, pairs)["probability"][middle])
    label = predict_pairs(replace(model, threshold=threshold), pairs)["label"]
    assert (label[low], label[middle], label[high]) == (-1, 1, 1)


def test_pairs_that_are_all_unknown_are_a_table_too(model: SignModel) -> None:
    table = predict_pairs(model, read_pairs(pl.DataFrame({"source": [1], "target": [2]}), model.graph.names))
    assert np.isnan(table["probability"]).all()
    assert table["label"].tolist() == [0]


TRIANGLE = SignedGraph.of(np.array([0, 1, 2]), np.array([1, 2, 0]), np.array([1, -1, 1]))


@pytest.mark.parametrize(
    ("of_model", "of_edges", "unknown"),
    [((30, 10, 20), (20, 99, 30), 2), (("c", "a", "b"), ("b", "zoe", "c"), 2), (("3", "1", "2"), (2, 9, 3), 2)],
    ids=["numbers", "texts", "numbers for texts"],
)
def test_edges_get_the_numbers_of_the_model(model: SignModel, of_model: tuple, of_edges: tuple, unknown: int) -> None:
    model = replace(model, graph=named(TRIANGLE, *of_model))
    part, notes = edges_of_model(model, named(TRIANGLE, *of_edges))
    # Of the edges 0 -> 1, 1 -> 2, 2 -> 0 only the last is between known nodes: the third and the first name.
    assert (part.source.tolist(), part.target.tolist(), part.sign.tolist()) == ([0], [2], [1])
    assert part.names is model.graph.names
    assert notes == [f"{unknown} edges touch a node that the model does not know; left out"]


def test_edges_of_known_nodes_all_stay_without_a_note(model: SignModel) -> None:
    part, notes = edges_of_model(model, model.graph)
    assert (part.key == model.graph.key).all()
    assert notes == []


@pytest.mark.parametrize("names", [(1, 2, 3), ("a", "b", "c")], ids=["numbers", "texts"])
def test_a_graph_of_unknown_nodes_is_refused(model: SignModel, names: tuple) -> None:
    with pytest.raises(DataError, match="no edge is between nodes that the model knows"):
        edges_of_model(model, named(TRIANGLE, *names))


@pytest.fixture
def new(planted: SignedGraph) -> Augmented:
    """The planted graph with people's names, after SGA has deleted and added edges."""
    graph = named(planted, *(f"née {node}" for node in range(planted.num_nodes)))
    method = Sga(scorer="triads", candidates="near", add_positive=0.8, add_negative=0.9)
    return apply(method.plan(GraphJob.of(graph)), graph)


def test_kept_and_added_edges_stand_in_one_table_and_deleted_ones_in_the_other(
    planted: SignedGraph, new: Augmented
) -> None:
    stays, gone = augmented_tables(new)
    assert set(stays["origin"]) == {"kept", "added"}
    assert set(gone["origin"]) == {"deleted"}
    assert len(gone["sign"]) + (stays["origin"] == "kept").sum() == planted.num_edges
    assert [len(table["sign"]) for table in (stays, gone)] == [
        new.graph.num_edges,
        new.all_edges.num_edges - new.graph.num_edges,
    ]
    assert (stays["probability"][stays["origin"] == "added"] >= 0.8).all()
    assert (gone["probability"] < 0.05).all()


def test_triangles_are_those_of_the_graph_as_it_was(planted: SignedGraph, new: Augmented) -> None:
    neighbours = Neighbours.of(planted)
    chosen = new.origin != ORIGINS.index("deleted")
    for table, part in zip(
        augmented_tables(new), (new.all_edges.take(chosen), new.all_edges.take(~chosen)), strict=True
    ):
        balanced, unbalanced = balance(neighbours, part.source, part.target, part.sign)
        assert (table["balanced"] == balanced).all()
        assert (table["unbalanced"] == unbalanced).all()


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet"])
def test_reading_the_table_back_gives_the_augmented_graph(new: Augmented, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"new{suffix}"
    stays, gone = augmented_tables(new)
    write_table(path, stays)
    again = read(path)
    assert told(again.graph) == told(new.graph)
    assert again.counts["rows"] == again.counts["kept"] == new.graph.num_edges
    write_table(tmp_path / f"gone{suffix}", gone)
    deleted = read(tmp_path / f"gone{suffix}").graph
    assert told(deleted) == told(new.all_edges.take(new.origin == 1))
    assert not told(deleted) & told(again.graph)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("edges.csv.gz", "edges.deleted.csv.gz"),
        ("edges.parquet", "edges.deleted.parquet"),
        ("edges", "edges.deleted"),
    ],
)
def test_the_file_of_deleted_edges_is_beside_the_other(name: str, found: str) -> None:
    assert beside(Path("folder.d") / name, "deleted") == Path("folder.d") / found
