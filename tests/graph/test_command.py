"""The commands of signed graphs on small files: what they write is whole, can be read, and says what it is."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from thrifty.graph import metrics
from thrifty.graph.model import SignModel
from thrifty.graph.reading import read
from thrifty.graph.signed import SignedGraph
from thrifty.graph.writing import as_frame, edge_columns
from thrifty.plan import Plan
from thrifty.report import load

QUICK = ("--set", "reach=2")
NEAR = ("--set", "scorer=triads", "--set", "candidates=near", "--set", "add_positive=0.8", "--set", "add_negative=0.9")
METRICS = {name + end for name in metrics.NAMES for end in ("", "_sd")}


@pytest.fixture
def model(thrifty, trust: Path, tmp_path: Path) -> Path:
    """A model of the planted graph."""
    assert thrifty("fit", trust, "-o", tmp_path / "model", *QUICK)[0] == 0
    return tmp_path / "model"


def test_fit_writes_a_model_and_says_what_it_learnt_from(thrifty, trust: Path, tmp_path: Path, planted) -> None:
    status, out, error = thrifty("fit", trust, "-o", tmp_path / "model", *QUICK, "--json", tmp_path / "out.json")
    assert (status, error) == (0, "")
    row = json.loads((tmp_path / "out.json").read_text())
    model = SignModel.load(tmp_path / "model")
    assert (row["nodes"], row["edges"]) == (planted.num_nodes, planted.num_edges)
    assert (model.graph.key == planted.key).all()
    assert row["threshold"] == model.threshold
    assert row["settings"]["reach"] == model.scorer.reach == 2
    assert row["row_counts"]["kept"] == row["row_counts"]["rows"] == planted.num_edges
    assert row["bytes"] == (tmp_path / "model").stat().st_size
    assert "rules: duplicates=last" in out


def test_every_command_writes_json_that_a_report_can_show(thrifty, trust: Path, model: Path, tmp_path: Path) -> None:
    pl.read_csv(trust).select("source", "target").head(20).write_csv(tmp_path / "pairs.csv")
    commands = {
        "fit": (trust, "-o", tmp_path / "again", *QUICK),
        "predict": (model, tmp_path / "pairs.csv", "-o", tmp_path / "signs.csv"),
        "audit": (model, "--most", 3),
        "augment": (trust, "-o", tmp_path / "new.csv", "--method", "drop_edge"),
        "balance": (trust, tmp_path / "pairs.csv", "-o", tmp_path / "triangles"),
        "evaluate": (trust, "--splits", 1, *QUICK),
    }
    for command, words in commands.items():
        target = tmp_path / f"{command}.json"
        status, out, error = thrifty(command, *words, "--json", target)
        assert (status, error) == (0, ""), command
        assert out, command
        assert json.loads(target.read_text())["kind"] == "graph"
        assert load([target]).rows, command


def test_predictions_keep_the_rows_and_the_names_of_the_pairs(thrifty, people: Path, tmp_path: Path) -> None:
    assert thrifty("fit", people, "-o", tmp_path / "model", *QUICK)[0] == 0
    (tmp_path / "pairs.csv").write_text("source,target\nnée 1,née 2\nzoë,née 1\nnée 5,née 4\n")
    status, out, _ = thrifty("predict", tmp_path / "model", tmp_path / "pairs.csv", "-o", tmp_path / "signs.csv")
    assert status == 0
    assert "1 of 3 pairs have a node that the graph does not have" in out
    table = pl.read_csv(tmp_path / "signs.csv")
    assert table.columns == ["source", "target", "probability", "label"]
    assert table["source"].to_list() == ["née 1", "zoë", "née 5"]
    assert [one is None for one in table["probability"]] == [False, True, False]
    assert table["label"].to_list()[1] == 0
    one = SignModel.load(tmp_path / "model")
    names = one.graph.names.tolist()
    pair = [np.array([names.index(name)], dtype=np.int32) for name in ("née 1", "née 2")]
    assert table["probability"][0] == pytest.approx(one.probability(*pair)[0])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_no_pairs_are_predicted_as_a_table_without_rows(thrifty, model: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "pairs.csv").write_text("source,target\n")
    words = (
        "predict",
        model,
        tmp_path / "pairs.csv",
        "-o",
        tmp_path / f"signs.{kind}",
        "--json",
        tmp_path / "out.json",
    )
    status, _, error = thrifty(*words)
    assert (status, error) == (0, "")
    read_table = pl.read_csv if kind == "csv" else pl.read_parquet
    assert read_table(tmp_path / f"signs.{kind}").columns == ["source", "target", "probability", "label"]
    row = json.loads((tmp_path / "out.json").read_text())
    assert (row["pairs"], row["predicted"], row["positive"]) == (0, 0, 0)


def test_no_pairs_close_no_triangles(thrifty, trust: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("source,target\n")
    assert thrifty("balance", trust, tmp_path / "pairs.csv", "-o", tmp_path / "out")[0] == 0
    assert pl.read_parquet(tmp_path / "out" / "*.parquet").height == 0


def test_a_folder_of_parquet_is_predicted_file_by_file(thrifty, model: Path, tmp_path: Path, planted) -> None:
    (tmp_path / "pairs").mkdir()
    frame = as_frame(edge_columns(planted)).select("source", "target")
    frame[:100].write_parquet(tmp_path / "pairs" / "a.parquet")
    pl.concat([frame[100:150], pl.DataFrame({"source": [1], "target": [9999]})]).write_parquet(
        tmp_path / "pairs" / "b.parquet"
    )
    words = ("predict", model, tmp_path / "pairs", "-o", tmp_path / "out", "--json", tmp_path / "out.json")
    assert thrifty(*words)[0] == 0
    row = json.loads((tmp_path / "out.json").read_text())
    assert (row["pairs"], row["predicted"], row["shards"]) == (151, 150, 2)
    found = [pl.read_parquet(tmp_path / "out" / name) for name in ("a.parquet", "b.parquet")]
    assert [one.height for one in found] == [100, 51]
    assert found[1]["probability"].to_list()[-1] is None
    thrifty("predict", model, tmp_path / "pairs" / "a.parquet", "-o", tmp_path / "one.parquet")
    assert found[0]["probability"].to_list() == pl.read_parquet(tmp_path / "one.parquet")["probability"].to_list()
    status, out, _ = thrifty(*words)
    assert status == 0
    assert "0 shards done now, 2 were done already" in out


@pytest.mark.parametrize("given", [True, False], ids=["a file", "what was learnt"])
def test_an_audit_ranks_all_edges_and_shows_some(thrifty, trust: Path, model: Path, tmp_path: Path, given) -> None:
    words = [model, trust] if given else [model]
    target = tmp_path / "audit.json"
    status, out, _ = thrifty("audit", *words, "--most", 2, "-o", tmp_path / "ranked.csv", "--json", target)
    assert status == 0
    table = pl.read_csv(tmp_path / "ranked.csv")
    edges = pl.read_csv(trust)
    assert table.height == edges.height
    assert table["probability_of_sign"].is_sorted()
    assert set(table.select("source", "target", "sign").rows()) == set(edges.rows())
    few = (table["probability_of_sign"] < 0.5).sum()
    assert f"{few:,} of {edges.height:,} signs are believed with less than a half" in out
    rows = json.loads(target.read_text())["rows"]
    assert [row["reason"] for row in rows] == table["reason"].to_list()[:2]
    assert [row["source"] for row in rows] == [str(source) for source in table["source"][:2]]


def test_an_audit_of_other_edges_counts_those_of_unknown_nodes(thrifty, model: Path, tmp_path: Path) -> None:
    (tmp_path / "others.csv").write_text("source,target,sign\n1,2,1\n3,4,-1\n5,9999,1\n")
    status, out, _ = thrifty("audit", model, tmp_path / "others.csv", "-o", tmp_path / "ranked.csv")
    assert status == 0
    assert "1 edges touch a node that the model does not know; left out" in out
    assert pl.read_csv(tmp_path / "ranked.csv").height == 2


def test_augment_writes_the_new_edges_the_deleted_ones_and_the_plan(thrifty, people: Path, tmp_path: Path) -> None:
    files = ("-o", tmp_path / "new.csv.gz", "--save-plan", tmp_path / "plan", "--json", tmp_path / "out.json")
    status, out, _ = thrifty("augment", people, *files, *NEAR)
    assert status == 0
    row = json.loads((tmp_path / "out.json").read_text())
    new, old, gone = (read(path).graph for path in (tmp_path / "new.csv.gz", people, tmp_path / "new.deleted.csv.gz"))
    assert (row["edges_before"], row["edges_after"]) == (old.num_edges, new.num_edges)
    assert new.num_edges == old.num_edges - gone.num_edges + row["added_positive"] + row["added_negative"]
    assert gone.num_edges == row["deleted_positive"] + row["deleted_negative"] > 0
    assert row["added_positive"] > 0
    origins = pl.read_csv(tmp_path / "new.csv.gz")["origin"].value_counts()
    assert dict(origins.rows())["added"] == row["added_positive"] + row["added_negative"]
    assert Plan.load(tmp_path / "plan").keep["edges"].sum() == row["kept_positive"] + row["kept_negative"]
    assert "Sga(scorer='triads'" in out


@pytest.mark.parametrize("words", [NEAR, ("--method", "drop_edge")], ids=["sga", "drop_edge"])
@pytest.mark.parametrize(("keep", "least", "most"), [("101%", 0.8, 1.01), ("50%", 0.49, 0.5)])
def test_a_budget_bounds_the_edges(
    thrifty, trust: Path, tmp_path: Path, planted: SignedGraph, words: tuple, keep: str, least: float, most: float
) -> None:
    assert thrifty("augment", trust, "-o", tmp_path / "new.csv", "--keep", keep, *words)[0] == 0
    num_edges = read(tmp_path / "new.csv").graph.num_edges
    assert least * planted.num_edges <= num_edges <= most * planted.num_edges


def test_a_small_budget_of_sga_deletes_what_is_believed_least(thrifty, trust: Path, tmp_path: Path) -> None:
    assert thrifty("augment", trust, "-o", tmp_path / "new.csv", "--keep", "50%", *NEAR)[0] == 0
    kept, gone = (pl.read_csv(tmp_path / name)["probability"] for name in ("new.csv", "new.deleted.csv"))
    assert kept.min() >= gone.max()


def test_balance_counts_the_triangles_of_each_pair(thrifty, tmp_path: Path) -> None:
    (tmp_path / "edges.csv").write_text("source,target,sign\n1,2,1\n2,3,-1\n1,4,1\n4,3,1\n")
    (tmp_path / "pairs.csv").write_text("source,target\n1,3\n2,4\n1,9\n")
    status, _, _ = thrifty("balance", tmp_path / "edges.csv", tmp_path / "pairs.csv", "-o", tmp_path / "out")
    assert status == 0
    table = pl.read_parquet(tmp_path / "out" / "*.parquet")
    assert table["balanced_if_positive"].to_list() == [1, 1, None]
    assert table["balanced_if_negative"].to_list() == [1, 1, None]


def test_evaluate_without_edges_says_synthetic_and_gives_the_promised_keys(thrifty, tmp_path: Path) -> None:
    words = ("--splits", 2, *QUICK, "--json", tmp_path / "out.json", "--out", tmp_path / "page")
    status, out, error = thrifty("evaluate", *words)
    assert (status, error) == (0, "")
    assert "SYNTHETIC: no edges were named" in out
    assert "its numbers say nothing about real graphs" in out
    row = json.loads((tmp_path / "out.json").read_text())
    assert row.keys() >= METRICS
    assert all(isinstance(row[name], float) for name in METRICS)
    assert row["origin"].startswith("synthetic")
    assert "SYNTHETIC" in (tmp_path / "page" / "report.html").read_text()


@pytest.mark.parametrize(("how", "note"), [("temporal", "edges by time"), ("cold", "are never seen in training")])
def test_the_synthetic_graph_can_be_split_by_time_and_by_node(thrifty, tmp_path: Path, how: str, note: str) -> None:
    words = ("--split", how, "--splits", 1, *QUICK, "--json", tmp_path / "out.json")
    status, out, _ = thrifty("evaluate", *words)
    assert status == 0
    assert note in out
    row = json.loads((tmp_path / "out.json").read_text())
    assert row["splits"] == ["temporal" if how == "temporal" else "cold:0"]
    assert 0.5 < row["auc"] < 1
    assert row["auc_sd"] is None  # one run has no spread


def test_several_scorers_are_compared_on_the_same_splits(thrifty, trust: Path, tmp_path: Path) -> None:
    also = ("--also", "triads:reach=2,strength=0.01", "--also", "sgcn:epochs=5,dim=8")
    words = ("--splits", 1, *QUICK, *also, "--json", tmp_path / "out.json")
    assert thrifty("evaluate", trust, *words)[0] == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["triads reach=2", "triads reach=2 strength=0.01", "sgcn dim=8 epochs=5"]
    assert len({row["auc"] for row in rows}) == 3
    assert [len(row["runs"]) for row in rows] == [1, 1, 1]


def test_a_setting_goes_to_the_scorer_or_the_method_that_has_it(thrifty, trust: Path, tmp_path: Path) -> None:
    words = ("--splits", 1, *QUICK, "--augment", "drop_edge", "--set", "share=0.3", "--json", tmp_path / "out.json")
    assert thrifty("evaluate", trust, *words)[0] == 0
    row = json.loads((tmp_path / "out.json").read_text())
    assert (row["settings"]["reach"], row["settings"]["method"]) == (2, "DropEdge(share=0.3)")
    assert row["label"] == "triads reach=2 + drop_edge share=0.3"


def test_the_same_command_gives_the_same_model(thrifty, trust: Path, model: Path, tmp_path: Path) -> None:
    assert thrifty("fit", trust, "-o", tmp_path / "again", *QUICK)[0] == 0
    one, again = (SignModel.load(path) for path in (model, tmp_path / "again"))
    assert (one.slope, one.offset, one.threshold) == (again.slope, again.offset, again.threshold)
    assert all((again.fitted.tensors()[name] == values).all() for name, values in one.fitted.tensors().items())


def test_columns_ratings_and_policies_are_as_told(thrifty, tmp_path: Path, planted: SignedGraph) -> None:
    frame = as_frame(edge_columns(planted)).select(
        a="source", b="target", stars=pl.when(pl.col("sign") > 0).then(5).otherwise(2)
    )
    pl.concat([frame, frame.head(3)]).write_csv(tmp_path / "stars.csv")
    columns = ("--source", "a", "--target", "b", "--rating", "stars", "--threshold", 3)
    status, out, _ = thrifty(
        "fit", tmp_path / "stars.csv", "-o", tmp_path / "model", *columns, *QUICK, "--policy", "duplicates=first"
    )
    assert status == 0
    assert "rating: above 3 is positive, below it negative" in out
    assert "duplicates: 3 rows left out, the first of each stays" in out
    assert (SignModel.load(tmp_path / "model").graph.sign == planted.sign).all()


def test_garbage_in_one_row_of_a_hundred_is_left_out_counted_and_shown(
    thrifty, trust: Path, tmp_path: Path, planted: SignedGraph
) -> None:
    lines = trust.read_text().splitlines()
    garbage = ["?? nothing here ??", "1,2,maybe", "7,,1", ",7,-1", "a b c,4,1", "1,2,1,9,9"]
    places = range(50, len(lines), 100)
    for turn, place in enumerate(places):
        lines.insert(place + turn, garbage[turn % len(garbage)])
    (tmp_path / "dirty.csv").write_text("\n".join(lines) + "\n")
    words = (tmp_path / "dirty.csv", "-o", tmp_path / "model", *QUICK, "--json", tmp_path / "out.json")
    status, out, error = thrifty("fit", *words)
    assert (status, error) == (0, "")
    counts = json.loads((tmp_path / "out.json").read_text())["row_counts"]
    assert counts["rows"] == len(lines) - 1
    assert counts["kept"] == planted.num_edges
    assert sum(counts.values()) - counts["rows"] == counts["rows"]
    num_maybe = len(places[1::6])
    assert counts["unreadable sign"] == num_maybe
    assert f"unreadable sign: {num_maybe} rows left out (line 152: '1,2,maybe'" in out
    assert (SignModel.load(tmp_path / "model").graph.key == planted.key).all()
