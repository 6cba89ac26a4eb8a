"""How well signs are predicted on edges that were never learnt from: over splits and seeds, with means and spread."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thrifty import catalogue, settings
from thrifty.errors import SettingError
from thrifty.graph import metrics
from thrifty.graph.apply import apply
from thrifty.graph.curriculum import Pacing, difficulty
from thrifty.graph.job import GraphJob
from thrifty.graph.model import SignModel
from thrifty.graph.scorer import Scorer
from thrifty.graph.signed import SignedGraph
from thrifty.graph.split import Split, slices
from thrifty.plots import Plot, Series
from thrifty.progress import Track, silent
from thrifty.report import Column, Report


@dataclass(frozen=True)
class Entry:
    """One way to predict signs: a scorer, perhaps on a graph that `method` has augmented, perhaps from easy to hard."""

    scorer: Scorer
    method: Any = None
    has_curriculum: bool = False
    pacing: dict[str, Any] = field(default_factory=dict)
    is_calibrated: bool = True

    @property
    def label(self) -> str:
        """The scorer, and what is done to the graph: `sgcn + sga + curriculum`."""
        words = [_worded(self.scorer)]
        words += [_worded(self.method)] if self.method is not None else []
        words += ["curriculum"] if self.has_curriculum else []
        return " + ".join(words)

    def model(self, graph: SignedGraph, seed: int, track: Track = silent) -> SignModel:
        """Learn from `graph`, which holds no edge that is to be tested on."""

        def augment(part: SignedGraph) -> SignedGraph:
            return apply(self.method.plan(GraphJob.of(part, seed=seed)), part).graph

        def pace(part: SignedGraph) -> Pacing:
            return Pacing(difficulty(part), part.sign, seed, **self.pacing)

        fit = SignModel.fit if self.is_calibrated else SignModel.uncalibrated
        return fit(
            graph,
            self.scorer,
            seed,
            track,
            None if self.method is None else augment,
            pace if self.has_curriculum else None,
        )

    def settings(self) -> dict[str, Any]:
        """Every setting, for results files."""
        chosen = {"scorer": catalogue.name_of(self.scorer), **settings.shown(self.scorer)}
        if self.method is not None:
            chosen["method"] = repr(self.method)
        if self.has_curriculum:
            chosen["curriculum"] = {"start": 0.25, "stages": 30, "per_sign": True, "ties": "random"} | self.pacing
        return chosen


def evaluate(
    graph: SignedGraph,
    entries: list[Entry],
    found: list[Split],
    num_seeds: int = 1,
    track: Track = silent,
    first_seed: int = 0,
) -> list[dict[str, Any]]:
    """One row for each entry: the mean of every metric over splits and seeds, the standard deviation as NAME_sd, the
    same on slices of the test edges, the runs one by one, and a reliability curve over all of them. Scorers have the
    `num_seeds` seeds from `first_seed` on.

    Raises `SettingError` for no seeds, and what `Entry.model` raises.
    """
    if num_seeds < 1:
        raise SettingError(f"{num_seeds} seeds were asked for; use 1 or more")
    seeds = range(first_seed, first_seed + num_seeds)
    turns = [(place, split, seed) for place in range(len(entries)) for split in found for seed in seeds]
    runs: list[list[dict[str, Any]]] = [[] for _ in entries]
    for place, split, seed in track(turns, "evaluating", len(turns)):
        runs[place].append(_run(graph, entries[place], split, seed))
    return [_row(entry, own, graph, found, num_seeds) for entry, own in zip(entries, runs, strict=True)]


def _run(graph: SignedGraph, entry: Entry, split: Split, seed: int) -> dict[str, Any]:
    train, test = graph.take(split.train), graph.take(split.test)
    start = time.perf_counter()
    model = entry.model(train, seed)
    fitted = time.perf_counter()
    probability = model.probability(test.source, test.target)
    scored = time.perf_counter()
    parts = {
        name: metrics.measure(probability[part], test.sign[part], model.threshold) | {"edges": int(part.sum())}
        for name, part in slices(graph, split).items()
    }
    return {
        "split": split.name,
        "seed": seed,
        **metrics.measure(probability, test.sign, model.threshold),
        "threshold": model.threshold,
        "train_edges": train.num_edges,
        "test_edges": test.num_edges,
        "seconds_fit": fitted - start,
        "seconds_score": scored - fitted,
        "slices": parts,
        "probability": probability,
        "sign": test.sign,
    }


def _row(
    entry: Entry, runs: list[dict[str, Any]], graph: SignedGraph, found: list[Split], num_seeds: int
) -> dict[str, Any]:
    probability, sign = (np.concatenate([run[name] for run in runs]) for name in ("probability", "sign"))
    names = [*metrics.NAMES, "seconds_fit", "seconds_score"]
    parts = {}
    for name in runs[0]["slices"]:
        of_part = [run["slices"][name] for run in runs]
        parts[name] = {"edges": sum(one["edges"] for one in of_part)} | dict(_means(of_part, metrics.NAMES))
    told = ("split", "seed", *metrics.NAMES, "threshold", "train_edges", "test_edges", "seconds_fit", "seconds_score")
    return {
        "label": entry.label,
        "settings": entry.settings(),
        **dict(_means(runs, names)),
        "splits": [split.name for split in found],
        "seeds": num_seeds,
        "nodes": graph.num_nodes,
        "edges": graph.num_edges,
        "positive_share": graph.positive_share,
        "slices": parts,
        "reliability": [list(one) for one in metrics.reliability(probability, sign > 0)],
        "runs": [{name: run[name] for name in told} for run in runs],
    }


def _means(runs: list[dict[str, Any]], names: Any) -> Iterator[tuple[str, float]]:
    """Mean and standard deviation of each, leaving out runs in which it is not a number."""
    for name in names:
        values = np.array([run[name] for run in runs], dtype=np.float64)
        values = values[~np.isnan(values)]
        yield name, float(values.mean()) if len(values) else float("nan")
        yield f"{name}_sd", float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def report(title: str, rows: list[dict[str, Any]], notes: list[str], provenance: dict[str, Any]) -> Report:
    """Table, reliability plot and what a reader must know."""
    columns = [
        Column("label", "predicted by"),
        Column("auc", "AUC", ".4f", "higher"),
        Column("auc_sd", "± sd", ".4f"),
        Column("ap_negative", "AP of negatives", ".4f", "higher"),
        Column("f1_binary", "F1", ".4f", "higher"),
        Column("f1_micro", "micro F1", ".4f", "higher"),
        Column("f1_macro", "macro F1", ".4f", "higher"),
        Column("auc_hard", "AUC of hard labels", ".4f"),
        Column("brier", "Brier", ".4f", "lower"),
        Column("ece", "ECE", ".4f", "lower"),
        Column("seconds_fit", "fit (s)", ".1f"),
    ]
    columns = [column for column in columns if any(column.value(row) is not None for row in rows)]
    best = max(rows, key=lambda row: row["auc"])
    headline = (
        f"{best['label']} ranks a positive edge above a negative one with probability {best['auc']:.3f}; "
        f"its probabilities are off by {best['ece']:.3f} on average."
    )
    first = rows[0]
    runs = f"{len(first['splits'])} split{'s' if len(first['splits']) > 1 else ''} ({', '.join(first['splits'])})"
    told = [
        f"Means over {runs} and {first['seeds']} seed(s), {first['runs'][0]['test_edges']:,} test edges in the first; "
        f"± is the standard deviation. {first['nodes']:,} nodes, {first['edges']:,} edges, "
        f"{first['positive_share']:.1%} positive.",
        "Calibration and the threshold of the hard labels come from training edges, each scored as if it were not "
        "known or held out from learning, never from test edges. The AUC of hard labels is there for comparison with "
        "papers that print it as AUC; it is no ranking AUC.",
        *notes,
    ]
    return Report(title, "graph", rows, columns, headline, plots(rows), notes=told, provenance=provenance)


def plots(rows: list[dict[str, Any]]) -> list[Plot]:
    """Reliability, and the AUC by how well the less known end of an edge is known."""
    curves = [Series("perfect", [0.0, 1.0], [0.0, 1.0])]
    curves += [Series(row["label"], *([one[i] for one in row["reliability"]] for i in (0, 1))) for row in rows]
    drawn = [
        Plot(
            "Reliability",
            "predicted probability of a positive sign",
            "share of positive edges",
            curves,
            caption="Test edges in 15 bins of probability; on the diagonal a probability means what it says.",
        )
    ]
    degrees = [name for name in rows[0]["slices"] if name.startswith("degree")]
    if len(degrees) > 1:
        lows = [int("".join(itertools.takewhile(str.isdigit, name.removeprefix("degree ")))) for name in degrees]
        series = [Series(row["label"], lows, [_finite(row["slices"][name]["auc"]) for name in degrees]) for row in rows]
        caption = f"Test edges by the training edges of the end that has fewer: {', '.join(degrees)}."
        drawn.append(Plot("Known and unknown nodes", "training edges, from", "AUC", series, caption=caption))
    return drawn


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _worded(chosen: Any) -> str:
    """The name and the settings that are not the usual ones."""
    usual = type(chosen)()
    words = [
        f"{name}={value}" for name, value in settings.shown(chosen).items() if value != settings.shown(usual)[name]
    ]
    return " ".join([catalogue.name_of(chosen), *words])
