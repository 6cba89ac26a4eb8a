"""Sign prediction on Bitcoin-OTC: our scorers against SGCN and SDGNN of torch-geometric-signed-directed, in one run.

    .venv/bin/pip install --no-deps torch-geometric-signed-directed==1.2.0
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/graph_peers.py [--splits 1] [--results results/graph_peers.jsonl]

SGA's official splits, or random ones where they are not on this machine. Peers have their own defaults, the epochs and
sizes of ours, Adam with a learning rate of 0.01 as in their examples, and their own read-out: a logistic regression on
both ends' vectors. Seconds are of learning and scoring the test edges. Labels are positive above a probability of 0.5.
"""

import argparse
import importlib.metadata
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from thrifty import catalogue
from thrifty.errors import DataError
from thrifty.files import write_text
from thrifty.graph.known import load
from thrifty.graph.metrics import measure
from thrifty.graph.signed import SignedGraph
from thrifty.graph.split import random_split, splits
from thrifty.progress import silent
from thrifty.report import Column, Report, provenance

PEERS = "torch-geometric-signed-directed"
EPOCHS = {"sgcn": 300, "sdgnn": 100}
DIMS = {"sgcn": 64, "sdgnn": 32}


def ours(name: str) -> Callable[[SignedGraph, SignedGraph], np.ndarray]:
    """P(positive) of the test edges by a scorer of the catalogue."""

    def score(train: SignedGraph, test: SignedGraph) -> np.ndarray:
        scorer = catalogue.find("graph", name, "scorers")()
        return 1 / (1 + np.exp(-scorer.fit(train, 0, None, silent).log_odds(test.source, test.target)))

    return score


def peer(name: str) -> Callable[[SignedGraph, SignedGraph], np.ndarray]:
    """P(positive) of the test edges by the other package."""

    def score(train: SignedGraph, test: SignedGraph) -> np.ndarray:
        from torch_geometric_signed_directed.nn.signed import SDGNN, SGCN

        torch.manual_seed(0)
        edges = torch.from_numpy(np.stack([train.source, train.target, train.sign], axis=1).astype(np.int64))
        kind = {"sgcn": SGCN, "sdgnn": SDGNN}[name]
        model = kind(train.num_nodes, edges, in_dim=DIMS[name], out_dim=DIMS[name])
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-3)
        for _ in range(EPOCHS[name]):
            optimiser.zero_grad()
            model.loss().backward()
            optimiser.step()
        with torch.no_grad():
            z = model().numpy()
        both = [np.concatenate([z[graph.source], z[graph.target]], axis=1) for graph in (train, test)]
        regression = LogisticRegression(max_iter=1000).fit(both[0], train.sign > 0)
        return regression.predict_proba(both[1])[:, 1]

    return score


def contestants() -> dict[str, Callable[[SignedGraph, SignedGraph], np.ndarray]]:
    """All that can run here, by name."""
    known = catalogue.names("graph", "scorers")
    wanted = [name for name in ("triads", "masked_gnn", "sgcn", "sdgnn", "stack") if name in known]
    found = {f"thrifty {name}": ours(name) for name in wanted}
    try:
        version = importlib.metadata.version(PEERS)
    except importlib.metadata.PackageNotFoundError:
        print(f"{PEERS} is not installed, so there is nothing to compare with; see the head of this file")
        return found
    return found | {f"{PEERS} {version} {name}": peer(name) for name in ("sgcn", "sdgnn")}


def parts(numbers: list[int]) -> list[tuple[str, SignedGraph, SignedGraph]]:
    """The name of each split, what to learn from, and what to be tested on."""
    graph = load("bitcoin-otc").graph
    try:
        found = [split for number in numbers for split in splits(graph, f"sga:{number}", origin="bitcoin-otc")]
    except DataError as missing:
        print(f"{missing}\nusing random splits")
        found = [random_split(graph, number) for number in numbers]
    return [(split.name, graph.take(split.train), graph.take(split.test)) for split in found]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--splits", type=int, nargs="+", default=[1])
    parser.add_argument("--results", type=Path, default=Path("results/graph_peers.jsonl"))
    asked = parser.parse_args()
    begin, rows = time.perf_counter(), []
    for split, train, test in parts(asked.splits):
        for name, score in contestants().items():
            start, busy = time.perf_counter(), time.process_time()
            probability = np.asarray(score(train, test), np.float64)
            seconds, cpu = time.perf_counter() - start, time.process_time() - busy
            values = measure(probability, test.sign)
            row = {"scorer": name, "split": split, **values, "seconds": seconds, "cpu_seconds": cpu}
            rows.append(row)
            print(f"{split} {name}: AUC {values['auc']:.4f}, macro-F1 {values['f1_macro']:.4f}, {seconds:.0f} s")
    origin = provenance(shlex.join(["python", *sys.argv]), time.perf_counter() - begin)
    columns = [Column("scorer", "scorer"), Column("split", "split"), Column("auc", "AUC", ".4f", "higher")]
    columns += [Column("f1_macro", "macro F1", ".4f", "higher"), Column("seconds", "seconds", ".1f", "lower")]
    columns += [Column("cpu_seconds", "CPU seconds", ".1f", "lower")]
    Report("Sign prediction on Bitcoin-OTC", "graph_peers", rows, columns, provenance=origin).print()
    write_text(
        asked.results, "".join(json.dumps({**row, "kind": "graph_peers", "provenance": origin}) + "\n" for row in rows)
    )


if __name__ == "__main__":
    main()
