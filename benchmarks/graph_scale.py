"""Seconds and memory: Epinions from file to scores, and ten million generated edges read, indexed and counted.

    .venv/bin/python benchmarks/graph_scale.py [--results results/graph_scale.jsonl] [--edges 10000000]

Each line holds the seconds of a step and the peak memory of the process so far. Kernels are compiled before that.
"""

import argparse
import json
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from thrifty import data
from thrifty.files import write_text
from thrifty.graph import known
from thrifty.graph.balance import balance, triangles
from thrifty.graph.model import SignModel
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.scorers.triads import Triads
from thrifty.graph.split import splits
from thrifty.report import provenance

LINES: list[dict[str, Any]] = []


def step(graph: str, what: str, work: Callable[[], Any]) -> Any:
    """Do the work, and note how long it took."""
    start = time.perf_counter()
    result = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    LINES.append({"graph": graph, "step": what, "seconds": time.perf_counter() - start, "peak_gib": peak})
    print(f"{graph:>12} {what:<28} {LINES[-1]['seconds']:7.1f} s {peak:6.2f} GiB", flush=True)
    return result


def epinions() -> None:
    """Load, split, learn from four fifths, score the other fifth, and count every triangle."""
    name = "epinions"
    graph = step(name, "read", lambda: known.load(name)).graph
    split = step(name, "official split", lambda: splits(graph, "sga:1", origin=name))[0]
    train, test = graph.take(split.train), graph.take(split.test)
    model = step(name, "fit", lambda: SignModel.fit(train, Triads()))
    step(name, "score the test edges", lambda: model.probability(test.source, test.target))
    neighbours = step(name, "index", lambda: Neighbours.of(graph))
    step(name, "triangles of every edge", lambda: balance(neighbours, graph.source, graph.target, graph.sign))
    step(name, "triangles in all", lambda: triangles(neighbours))


def generated(num_edges: int) -> None:
    """A tenth as many nodes as edges, activity and popularity by a power law."""
    random, nodes = np.random.default_rng(0), num_edges // 10
    ends = []
    for _ in range(2):
        weight = random.pareto(1.3, nodes) + 1
        ends.append(random.choice(nodes, num_edges, p=weight / weight.sum()))
    sign = np.where(random.random(num_edges) < 0.85, 1, -1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edges.csv"
        pl.DataFrame({"source": ends[0], "target": ends[1], "sign": sign}).write_csv(path)
        del ends, sign
        name = f"{num_edges // 10**6}M edges"
        graph = step(name, "read", lambda: known.load(str(path))).graph
    neighbours = step(name, "index", lambda: Neighbours.of(graph))
    LINES[-1]["max_degree"] = int(neighbours.degree.max())
    step(name, "triangles of every edge", lambda: balance(neighbours, graph.source, graph.target, graph.sign))
    step(name, "fit, paths of two edges", lambda: SignModel.fit(graph, Triads(reach=2)))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results/graph_scale.jsonl"))
    parser.add_argument("--edges", type=int, default=10_000_000)
    arguments = parser.parse_args()
    start = time.perf_counter()
    small = known.synthetic().graph  # compiles
    SignModel.fit(small, Triads()).probability(small.source, small.target)
    triangles(Neighbours.of(small))
    if data.is_here("epinions"):
        epinions()
    generated(arguments.edges)
    origin = provenance(shlex.join(["python", *sys.argv]), time.perf_counter() - start)
    lines = [json.dumps(line | {"kind": "graph_scale", "provenance": origin}) for line in LINES]
    write_text(arguments.results, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
