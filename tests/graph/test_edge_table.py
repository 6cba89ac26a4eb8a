"""One table from files, folders, tables and graphs."""

from pathlib import Path

import networkx
import numpy as np
import polars as pl
import pytest
import torch
from torch_geometric.data import Data

from thrifty.errors import DataError
from thrifty.graph.columns import Columns
from thrifty.graph.edge_table import column_of, load

FRAME = pl.DataFrame({"src": [1, 2], "dst": [2, 3], "vote": [1, -1]})


def test_parquet_and_polars_give_the_same_table(tmp_path: Path) -> None:
    FRAME.write_parquet(tmp_path / "x.parquet")
    told = [load(origin, Columns()).frame for origin in (FRAME, FRAME.lazy(), tmp_path / "x.parquet")]
    assert told[0].columns == ["source", "target", "sign"]
    assert told[0].equals(told[1])
    assert told[0].equals(told[2])


def test_a_folder_of_parquet_is_one_table_in_the_order_of_its_names(tmp_path: Path) -> None:
    FRAME.head(1).write_parquet(tmp_path / "a.parquet")
    FRAME.tail(1).write_parquet(tmp_path / "b.parquet")
    assert load(tmp_path, Columns()).frame["source"].to_list() == [1, 2]


def test_directed_networkx_keeps_its_edges_and_their_attributes() -> None:
    graph = networkx.DiGraph()
    graph.add_edge("a", "b", sign=1)
    graph.add_edge("b", "c", sign=-1, weight=2.5)
    table = load(graph, Columns())
    assert table.frame.rows() == [("a", "b", 1, None), ("b", "c", -1, 2.5)]


def test_undirected_networkx_counts_in_both_directions_and_says_so() -> None:
    graph = networkx.Graph()
    graph.add_edge(1, 2, weight=-1.0)
    table = load(graph, Columns())
    assert table.frame.select("source", "target").rows() == [(1, 2), (2, 1)]
    assert "both directions" in table.notes[0]


@pytest.mark.parametrize("name", ["edge_sign", "edge_attr", "edge_weight"])
def test_data_of_pyg_holds_signs_by_any_usual_name(name: str) -> None:
    data = Data(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=3)
    setattr(data, name, torch.tensor([[1.0], [-1.0]]) if name == "edge_attr" else torch.tensor([1.0, -1.0]))
    frame = load(data, Columns()).frame
    told = "sign" if "sign" in frame.columns else "rating"
    assert frame[told].to_list() == [1.0, -1.0]


def test_pandas_is_read_column_by_column() -> None:
    pandas = pytest.importorskip("pandas")
    frame = load(pandas.DataFrame({"u": ["a", "b"], "v": ["b", "c"], "sign": [1, -1]}), Columns()).frame
    assert frame.rows() == [("a", "b", 1), ("b", "c", -1)]


def test_what_pandas_does_not_have_is_nothing() -> None:
    pandas = pytest.importorskip("pandas")
    texts = pandas.array(["b", None], dtype="string")
    signs = pandas.Series([1, pandas.NA], dtype=object)
    frame = load(pandas.DataFrame({"u": ["a", "b"], "v": texts, "sign": signs}), Columns()).frame
    assert frame.rows() == [("a", "b", 1), ("b", None, None)]


def test_arrays_of_objects_are_columns_of_one_kind() -> None:
    def told(*values: object) -> list:
        return column_of(np.array(values, dtype=object)).to_list()

    assert told("a", None, float("nan"), 7) == ["a", None, None, "7"]
    assert told(1, None, 3) == [1, None, 3]
    assert column_of(np.array([True, False])).to_list() == [True, False]


@pytest.mark.parametrize(
    ("lines", "columns"),
    [
        ("1,2,1\n2,3,-1\n", ["source", "target", "sign"]),
        ("1,2,10,1407470400\n2,3,-3,1407470401\n", ["source", "target", "rating", "time"]),
        ("1,2,1,0.5\n2,3,-1,2\n", ["source", "target", "sign", "weight"]),
        ("1,2,1,5,1407470400\n2,3,-1,6,1407470401\n", ["source", "target", "sign", "weight", "time"]),
    ],
)
def test_columns_without_names_are_taken_by_their_place(tmp_path: Path, lines: str, columns: list[str]) -> None:
    path = tmp_path / "x.csv"
    path.write_text(lines)
    table = load(path, Columns())
    assert [name for name in table.frame.columns if name not in ("more", "blank")] == columns
    assert "no header" in table.notes[0]


def test_columns_without_names_can_be_told_by_number(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("1,7,2,1\n2,8,3,-1\n")
    table = load(path, Columns(source="1", target="3", sign="4"))
    assert table.frame["target"].to_list() == ["2", "3"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.parquet", b"source,target", "is no Parquet file"),
        ("x.parquet", b"", "0 bytes"),
        ("x.parquet", b"PAR1 and then nothing", "cannot be read as Parquet"),
        ("x.csv", b"source,target,sign\n", "a header and no rows"),
        ("x.json", b"{}", ".json cannot be read"),
        ("x.csv", b"1,2\n2,3\n", "no header and 2 columns"),
    ],
)
def test_an_unusable_file_says_why(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        load(path, Columns())


def test_an_unusable_origin_says_what_would_do(tmp_path: Path) -> None:
    for origin, told in [
        (tmp_path, r"folder without .parquet"),
        (tmp_path / "none.csv", "no file"),
        (7, "cannot read edges from int"),
        (networkx.DiGraph(), "no edges"),
        (Data(edge_index=torch.tensor([[0], [1]])), "has no signs"),
        (Data(x=torch.ones(3, 1)), r"has no edge_index; give it one of shape \[2, edges\]"),
        (Data(edge_index=torch.ones(3, 4)), r"an edge_index of shape \[3, 4\]; give it one of shape"),
        (FRAME.with_columns(src=pl.concat_list("src")), r"the source in column 'src' is List\(Int64\); give one value"),
        (networkx.DiGraph([(1, "1")]), "several nodes of the NetworkX graph are written '1'"),
        (FRAME.head(0), "no rows"),
    ]:
        with pytest.raises(DataError, match=told):
            load(origin, Columns())


def test_rows_are_shown_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("source,target,sign\na,b,1\nb,c,?\n")
    assert load(path, Columns()).shown([1]) == {1: "line 3: 'b,c,?'"}
    assert load(FRAME, Columns()).shown([1]) == {1: "row 2: '2, 3, -1'"}


def test_nodes_of_networkx_that_are_true_or_false_are_named_so() -> None:
    graph = networkx.DiGraph([(True, 2, {"sign": 1}), (2, False, {"sign": -1})])
    assert load(graph, Columns()).frame["source"].to_list() == ["True", "2"]


@pytest.mark.parametrize("other", [np.ones(2), [1, 2], {"a": 1}, torch.ones(2)])
def test_attributes_of_networkx_that_are_no_values_are_in_nobodys_way(other: object) -> None:
    graph = networkx.DiGraph([("a", "b", {"sign": 1, "features": other}), ("b", "c", {"sign": -1})])
    assert load(graph, Columns()).frame["sign"].to_list() == [1, -1]
    graph.add_edge("c", "a", sign=other)
    assert load(graph, Columns()).frame.height == 3  # the reader tells of the row that has no readable sign


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.int8])
def test_data_of_pyg_holds_signs_of_any_kind_of_number(kind: torch.dtype) -> None:
    signs = torch.tensor([1, -1], dtype=kind)
    data = Data(edge_index=torch.tensor([[0, 1], [1, 2]]), edge_sign=signs)
    assert load(data, Columns()).frame["sign"].to_list() == [1, -1]


def test_data_of_pyg_says_which_column_of_edge_attr_is_taken() -> None:
    ends = torch.tensor([[0, 1], [1, 2]])
    table = load(Data(edge_index=ends, edge_attr=torch.tensor([[5.0, 9], [-3, 9]])), Columns())
    assert table.frame["rating"].to_list() == [5, -3]
    assert table.notes == ["edge_attr has 2 columns: the first is taken"]
    for nothing in (torch.zeros(2, 0), torch.tensor(1.0)):
        with pytest.raises(DataError, match=r"has no signs|2 edges and 1 values"):
            load(Data(edge_index=ends, edge_attr=nothing), Columns())
