"""Evaluation: never a test edge in training, every metric with its spread, and the same numbers for the same seed."""

import json
from typing import Any

import numpy as np
import pytest

from thrifty.errors import SettingError
from thrifty.graph import metrics
from thrifty.graph.curriculum import Pacing
from thrifty.graph.evaluate import Entry, evaluate, report
from thrifty.graph.methods.drop_edge import DropEdge
from thrifty.graph.methods.sga import Sga
from thrifty.graph.scorers.sgcn import Sgcn
from thrifty.graph.scorers.triads import Triads
from thrifty.graph.signed import SignedGraph
from thrifty.graph.split import slices, splits

TRIADS = Triads(reach=2)
SHORT = Sgcn(epochs=5, dim=8)


def spied(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[Any]:
    """The first argument of every call of a method, in order; the method does its work as before."""
    seen, real = [], getattr(kind, name)

    def call(self: Any, first: Any, *others: Any) -> Any:
        seen.append((first, *others))
        return real(self, first, *others)

    monkeypatch.setattr(kind, name, call)
    return seen


def without_seconds(row: dict[str, Any]) -> str:
    """A row as text, in which NaN equals NaN, without what differs from run to run."""

    def quick(one: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in one.items() if not name.startswith("seconds")}

    return json.dumps(quick(row) | {"runs": [quick(run) for run in row["runs"]]})


def test_an_entry_is_called_by_what_it_does() -> None:
    assert Entry(Triads()).label == "triads"
    assert Entry(SHORT, Sga(scorer="triads"), True).label == "sgcn dim=8 epochs=5 + sga scorer=triads + curriculum"
    assert Entry(TRIADS, DropEdge()).settings()["method"] == "DropEdge(share=0.1)"
    assert Entry(TRIADS).settings() == {
        "scorer": "triads", "reach": 2, "strength": 1.0, "max_degree": 5000, "max_edges": 300_000,
    }  # fmt: skip
    assert Entry(SHORT, has_curriculum=True, pacing={"start": 0.5}).settings()["curriculum"]["start"] == 0.5


@pytest.mark.parametrize("how", ["random", "cold"])
def test_no_test_edge_is_ever_learnt_from(planted: SignedGraph, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    seen = spied(monkeypatch, Triads, "fit")
    found = splits(planted, how, 3)
    rows = evaluate(planted, [Entry(TRIADS)], found)
    assert len(seen) == 3
    for (graph, *_), split, run in zip(seen, found, rows[0]["runs"], strict=True):
        assert (graph.key == planted.key[split.train]).all()
        assert not np.isin(graph.key, planted.key[split.test]).any()
        assert (run["train_edges"], run["test_edges"]) == (split.train.sum(), split.test.sum())


def test_an_augmentation_is_planned_on_training_edges_only(
    planted: SignedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, learnt = spied(monkeypatch, DropEdge, "plan"), spied(monkeypatch, Triads, "fit")
    (split,) = splits(planted, "random", 1)
    evaluate(planted, [Entry(TRIADS, DropEdge(share=0.2))], [split])
    jobs = [job.graph for job, *_ in planned]
    assert (jobs[0].key == planted.key[split.train]).all()
    assert jobs[1].num_edges == pytest.approx(0.9 * jobs[0].num_edges, abs=1)  # the second fit sets the threshold
    for before, (after, *_) in zip(jobs, learnt, strict=True):
        assert after.num_edges == round(0.8 * before.num_edges)
        assert np.isin(after.key, planted.key[split.train]).all()


@pytest.mark.parametrize("entry", [Entry(TRIADS), Entry(SHORT), Entry(TRIADS, DropEdge())], ids=lambda one: one.label)
def test_signs_of_test_edges_change_no_prediction(graph: SignedGraph, entry: Entry) -> None:
    (split,) = splits(graph, "random", 1)
    turned = SignedGraph.of(graph.source, graph.target, np.where(split.test, -graph.sign, graph.sign), graph.num_nodes)
    rows = [evaluate(one, [entry], [split])[0] for one in (graph, turned)]
    assert rows[0]["runs"][0]["threshold"] == rows[1]["runs"][0]["threshold"]
    (said, true), (again, other) = (
        ([one[0::2] for one in row["reliability"]], [one[1] for one in row["reliability"]]) for row in rows
    )
    assert said == again
    assert true == pytest.approx([1 - share for share in other])
    assert rows[0]["auc"] == pytest.approx(1 - rows[1]["auc"])


def test_a_row_holds_every_metric_with_its_spread_on_the_whole_and_on_slices(planted: SignedGraph) -> None:
    found = splits(planted, "random", 2)
    (row,) = evaluate(planted, [Entry(TRIADS)], found, num_seeds=2)
    wanted = {name + end for name in metrics.NAMES for end in ("", "_sd")}
    assert wanted <= row.keys()
    assert all(np.isfinite(row[name]) for name in wanted)
    assert {"reverse in training", "no reverse in training", "degree 0", "degree 20+"} <= row["slices"].keys()
    assert all(wanted | {"edges"} == part.keys() for part in row["slices"].values())
    num_tested = 2 * sum(int(split.test.sum()) for split in found)
    assert sum(row["slices"][name]["edges"] for name in ("reverse in training", "no reverse in training")) == num_tested
    assert sum(part["edges"] for name, part in row["slices"].items() if name.startswith("degree")) == num_tested
    assert sum(count for _, _, count in row["reliability"]) == num_tested
    assert [(run["split"], run["seed"]) for run in row["runs"]] == [
        ("random:0", 0), ("random:0", 1), ("random:1", 0), ("random:1", 1),
    ]  # fmt: skip
    assert (row["splits"], row["seeds"]) == (["random:0", "random:1"], 2)
    assert (row["nodes"], row["edges"]) == (planted.num_nodes, planted.num_edges)


def test_means_and_spread_are_those_of_the_runs(graph: SignedGraph) -> None:
    (row,) = evaluate(graph, [Entry(TRIADS)], splits(graph, "random", 3))
    for name in metrics.NAMES:
        values = [run[name] for run in row["runs"]]
        assert len(set(values)) > 1
        assert row[name] == pytest.approx(sum(values) / 3)
        assert row[f"{name}_sd"] == pytest.approx(np.std(values, ddof=1))
    (one,) = evaluate(graph, [Entry(TRIADS)], splits(graph, "random", 1))
    assert np.isnan(one["auc_sd"])
    assert one["auc"] == row["runs"][0]["auc"]


def test_the_metrics_are_those_of_a_model_fitted_by_hand(planted: SignedGraph) -> None:
    (split,) = splits(planted, "random", 1)
    (row,) = evaluate(planted, [Entry(TRIADS)], [split])
    model, test = Entry(TRIADS).model(planted.take(split.train), 0), planted.take(split.test)
    found = metrics.measure(model.probability(test.source, test.target), test.sign, model.threshold)
    assert {name: row[name] for name in metrics.NAMES} == found
    assert row["runs"][0]["threshold"] == model.threshold
    for name, part in slices(planted, split).items():
        of_part = metrics.measure(model.probability(test.source, test.target)[part], test.sign[part], model.threshold)
        assert [row["slices"][name][metric] for metric in metrics.NAMES] == pytest.approx(
            list(of_part.values()), nan_ok=True
        )


def test_the_same_seed_gives_the_same_numbers(graph: SignedGraph) -> None:
    found = splits(graph, "random", 1)
    entry = Entry(SHORT, DropEdge(), True)
    rows = [evaluate(graph, [entry], found, num_seeds=2)[0] for _ in range(2)]
    assert without_seconds(rows[0]) == without_seconds(rows[1])
    assert rows[0]["runs"][0]["auc"] != rows[0]["runs"][1]["auc"]


def test_a_curriculum_paces_the_training_edges_and_is_refused_without_epochs(
    graph: SignedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = splits(graph, "random", 1)
    with pytest.raises(SettingError, match="a curriculum needs a scorer such as sgcn"):
        evaluate(graph, [Entry(TRIADS, has_curriculum=True)], found)
    seen = spied(monkeypatch, Sgcn, "fit")
    evaluate(graph, [Entry(SHORT, has_curriculum=True, pacing={"start": 0.5}), Entry(SHORT)], found)
    paces = [pacing for _, _, pacing, *_ in seen]
    assert [type(pacing) for pacing in paces] == [Pacing, Pacing, type(None), type(None)]
    assert (len(paces[0].difficulty), paces[0].start) == (found[0].train.sum(), 0.5)


def test_entries_of_one_label_keep_their_runs_apart(planted: SignedGraph) -> None:
    entries = [Entry(TRIADS), Entry(TRIADS, is_calibrated=False)]
    rows = evaluate(planted, entries, splits(planted, "random", 2))
    assert [len(row["runs"]) for row in rows] == [2, 2]
    assert [run["threshold"] for run in rows[1]["runs"]] == [0.5, 0.5]
    assert 0.5 not in [run["threshold"] for run in rows[0]["runs"]]


def test_seeds_begin_where_they_are_asked_to(graph: SignedGraph) -> None:
    (row,) = evaluate(graph, [Entry(TRIADS)], splits(graph, "random", 1), num_seeds=2, first_seed=7)
    assert [run["seed"] for run in row["runs"]] == [7, 8]


def test_no_seeds_are_refused(graph: SignedGraph) -> None:
    with pytest.raises(SettingError, match="0 seeds were asked for"):
        evaluate(graph, [Entry(TRIADS)], splits(graph, "random", 1), num_seeds=0)


def test_a_report_says_what_is_best_and_what_hard_labels_are(graph: SignedGraph) -> None:
    rows = evaluate(graph, [Entry(TRIADS), Entry(Triads(reach=2, strength=0.01))], splits(graph, "random", 2))
    rows[0]["auc"], rows[1]["auc"] = 0.75, 0.875
    made = report("Signs", rows, ["a note of the reading"], {"command": "thrifty"})
    assert made.headline.startswith("triads reach=2 strength=0.01 ranks a positive edge above a negative one")
    assert "probability 0.875" in made.headline
    assert f"off by {rows[1]['ece']:.3f}" in made.headline
    said = " ".join(made.notes)
    assert "The AUC of hard labels is there for comparison with papers" in said
    assert "no ranking AUC" in said
    assert "2 splits (random:0, random:1)" in said
    assert "a note of the reading" in made.notes
    hard = next(column for column in made.columns if column.key == "auc_hard")
    assert "hard" in hard.title
    assert not hard.better  # it takes no part in the contest
    assert [plot.title for plot in made.plots] == ["Reliability", "Known and unknown nodes"]
    assert [len(plot.series) for plot in made.plots] == [3, 2]
    assert "<svg" in made.page()
