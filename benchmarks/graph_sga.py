"""What SGA brings, part by part, on the official splits; and what a default, a stack and graph networks reach there.

    python benchmarks/graph_sga.py --results results/graph_sga.jsonl [--packed FILE] [--jobs 12] [--minutes 8]

The parts, one JSON line a run:
- grid, gcn, gat: SGCN, GCN or GAT as published (uniform prior, hard labels by the larger of two log-probabilities),
  {none, add, delete, both} x {no curriculum, published, and for SGCN per sign} x {random, spectral features}; SGCN
  proposes, with the preset thresholds of each graph. GCN and GAT learn without triplet losses, which shrink them to one
  vector.
- search, chosen: SGCN with spectral features; for each split, the augmentation and the curriculum with the best AUC on
  a tenth of the training edges, against plain training, both calibrated and fitted anew. Test edges choose nothing.
- scorers: every scorer of thrifty with its usual settings, calibrated.
GPUs are used where there are any, in turn; with --minutes no run starts after that time. What the results file holds
already is not run again.
"""

import argparse
import functools
import json
import multiprocessing
import os
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import graph_packed

from thrifty import catalogue
from thrifty.graph import metrics
from thrifty.graph.apply import apply
from thrifty.graph.curriculum import Pacing, difficulty
from thrifty.graph.job import GraphJob
from thrifty.graph.methods.sga import Sga
from thrifty.graph.model import SignModel, held_out_edges
from thrifty.graph.scorers.sgcn import Sgcn
from thrifty.graph.signed import SignedGraph
from thrifty.progress import silent
from thrifty.report import provenance

SEED = 2023
NEVER = {"delete_positive": 0.0, "delete_negative": 0.0}
OFF = {"add_positive": 1.1, "add_negative": 1.1}
CURRICULA: dict[str, dict[str, Any] | None] = {
    "none": None,
    "published": {"per_sign": False},
    "per sign": {},
}
CHOICES: dict[str, dict[str, Any]] = {
    "none": NEVER | OFF,
    "delete .1": {"delete_positive": 0.1, "delete_negative": 0.1} | OFF,
    "delete .3": {"delete_positive": 0.3, "delete_negative": 0.3} | OFF,
    "add .95": NEVER | {"add_positive": 0.95, "add_negative": 0.95},
    "add near .9": NEVER | {"add_positive": 0.9, "add_negative": 0.9, "candidates": "near"},
    "both": {"delete_positive": 0.1, "delete_negative": 0.1, "add_positive": 0.95, "add_negative": 0.95},
    "both near": {"delete_positive": 0.3, "delete_negative": 0.3, "add_positive": 0.9, "add_negative": 0.9}
    | {"candidates": "near"},
}
Rows = list[dict[str, Any]]
SCORERS = ("triads", "stack", "masked_gnn", "sgcn", "gcn", "gat", "sdgnn")


def pace(graph: SignedGraph, chosen: dict[str, Any]) -> Pacing:
    """A curriculum for the graph as it is learnt from."""
    return Pacing(difficulty(graph), graph.sign, SEED, **chosen)


def paced(name: str) -> Any:
    """The curriculum called `name`, as `SignModel` takes it."""
    chosen = CURRICULA[name]
    return None if chosen is None else functools.partial(pace, chosen=chosen)


def score(model: SignModel, test: SignedGraph) -> dict[str, float]:
    """All metrics on the test edges."""
    return metrics.measure(model.probability(test.source, test.target), test.sign, model.threshold)


def grid(name: str, train: SignedGraph, test: SignedGraph, done: Rows, scorer: str, features: str) -> Any:
    """The published pipeline and its parts, for one network with one kind of features."""
    wanted = [
        {"scorer": scorer, "features": features, "augment": augment, "curriculum": curriculum}
        for augment in ("none", "add", "delete", "both")
        for curriculum in (CURRICULA if scorer == "sgcn" else ("none", "published"))
    ]
    wanted = [about for about in wanted if not any(about.items() <= row.items() for row in done)]
    if not wanted:
        return
    generator = Sgcn().fit(train, SEED, None, silent)
    job = GraphJob.of(train, "1000%", SEED)
    plan = Sga(preset=name).plan_with(generator, job)
    whole = apply(plan, train)
    parts = {
        "none": train,
        "delete": whole.all_edges.take(whole.origin == 0),
        "add": train.joined(*_free(train, whole.all_edges.take(whole.origin == 2))),
        "both": whole.graph,
    }
    for about in wanted:
        start = time.perf_counter()
        network = catalogue.find("graph", scorer, "scorers")(features=features, prior="uniform")
        model = SignModel.uncalibrated(parts[about["augment"]], network, SEED, silent, None, paced(about["curriculum"]))
        yield about | {"changed": whole.counts()} | score(model, test) | {"seconds": time.perf_counter() - start}


def _free(train: SignedGraph, added: SignedGraph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Added edges whose cell was not only free because an edge had been deleted from it."""
    free = ~np.isin(added.key, train.key)
    return added.source[free], added.target[free], added.sign[free]


def augmented(graph: SignedGraph, choice: str) -> SignedGraph:
    """`graph` after the augmentation called `choice`."""
    if choice == "none":
        return graph
    return apply(Sga(**CHOICES[choice]).plan(GraphJob.of(graph, seed=SEED)), graph).graph


def search(name: str, train: SignedGraph, test: SignedGraph, done: Rows, choice: str) -> Any:
    """One augmentation, with and without the curriculum, on held-out training edges."""
    if len(_searched(done, choice)) == 2:
        return
    held_out = held_out_edges(train, SEED)
    learnt, judged = train.take(~held_out), train.take(held_out)
    graph = augmented(learnt, choice)
    for curriculum in ("none", "per sign"):
        model = SignModel.uncalibrated(graph, Sgcn(), SEED, silent, None, paced(curriculum))
        yield {"which": "search", "augment": choice, "curriculum": curriculum} | score(model, judged)


def _searched(done: Rows, *choices: str) -> dict[tuple[str, str], float]:
    rows = [row for row in done if row["which"] == "search" and row["augment"] in choices]
    return {(row["augment"], row["curriculum"]): row["auc"] for row in rows}


def chosen(name: str, train: SignedGraph, test: SignedGraph, done: Rows) -> Any:
    """Plain training, and the best of all choices on held-out training edges."""
    found = _searched(done, *CHOICES)
    if len(found) < 2 * len(CHOICES):
        print("search is not complete:", name, flush=True)
        return
    best = max(found, key=lambda one: found[one])
    told = {row["which"]: row for row in done}
    for which, (choice, curriculum) in (("plain", ("none", "none")), ("chosen", best)):
        if which in told:
            continue
        about = {"which": which, "augment": choice, "curriculum": curriculum}
        if best == ("none", "none") and "plain" in told:  # the same fit
            yield {**told["plain"], **about}
            continue
        prepare = None if choice == "none" else functools.partial(augmented, choice=choice)
        model = SignModel.fit(train, Sgcn(), SEED, silent, prepare, paced(curriculum))
        told[which] = about | score(model, test)
        yield told[which]


def scorers(name: str, train: SignedGraph, test: SignedGraph, done: Rows, which: tuple[str, ...] = SCORERS) -> Any:
    """Every scorer with its usual settings."""
    for one in which:
        if any(row["scorer"] == one for row in done):
            continue
        start = time.perf_counter()
        model = SignModel.fit(train, catalogue.find("graph", one, "scorers")(), SEED)
        fitted = time.perf_counter()
        found = score(model, test)
        yield (
            {"scorer": one}
            | found
            | {
                "seconds_fit": fitted - start,
                "seconds_score": time.perf_counter() - fitted,
            }
        )


PARTS = {
    **{f"search {choice}": ("chosen", functools.partial(search, choice=choice)) for choice in CHOICES},
    "chosen": ("chosen", chosen),
    "grid spectral": ("grid", functools.partial(grid, scorer="sgcn", features="spectral")),
    "grid random": ("grid", functools.partial(grid, scorer="sgcn", features="random")),
    "best": ("scorers", functools.partial(scorers, which=("triads", "stack"))),
    "gcn spectral": ("grid", functools.partial(grid, scorer="gcn", features="spectral")),
    "gcn random": ("grid", functools.partial(grid, scorer="gcn", features="random")),
    "gat spectral": ("grid", functools.partial(grid, scorer="gat", features="spectral")),
    "gat random": ("grid", functools.partial(grid, scorer="gat", features="random")),
    "others": ("scorers", functools.partial(scorers, which=SCORERS[2:])),
}
"""What can be run: the part that its lines are of, and the function that yields them."""


def work(task: tuple[str, str, int], packed: Path, results: Path, until: float, about: dict[str, Any]) -> bool:
    """Do one part on one split, and append a line for each run as soon as it is done; whether nothing went wrong."""
    name, place = task[1:]
    part, run = PARTS[task[0]]
    if time.time() > until:
        print("no time for", *task, flush=True)
        return True
    torch.set_num_threads(1)
    start = time.perf_counter()
    one = {"kind": "graph_sga", "part": part, "set": name, "split": place + 1}
    try:
        graph, tests = graph_packed.load(packed, name)
        train, test = graph.take(~tests[place]), graph.take(tests[place])
        done = [row for row in read(results) if one.items() <= row.items()]
        for found in run(name, train, test, done):
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(one | found | {"provenance": about}) + "\n")
            if time.time() > until + 60:
                break
    except Exception:  # the other tasks go on; the exit status tells
        traceback.print_exc()
        return False
    print(f"{time.perf_counter() - start:6.1f} s", *task, flush=True)
    return True


def read(results: Path) -> Rows:
    """The lines that are there already; one that another process is just writing is not."""
    text = results.read_text(encoding="utf-8") if results.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def settle(turn: Any, num_gpus: int) -> None:
    """Give this process the next GPU."""
    with turn.get_lock():
        turn.value += 1
        if num_gpus:
            torch.cuda.set_device(turn.value % num_gpus)


def main() -> None:
    """Share the tasks out, part after part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--packed", type=Path)
    parser.add_argument("--results", type=Path, default=Path("results/graph_sga.jsonl"))
    parser.add_argument("--sets", nargs="*", default=list(graph_packed.SETS))
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6)
    arguments = parser.parse_args()
    start = time.time()
    packed = arguments.packed or arguments.results.with_suffix(".npz")
    if not packed.exists():
        graph_packed.pack(packed)
    tasks = [
        (part, name, place)
        for part in arguments.parts
        for name in sorted(arguments.sets, key=graph_packed.SETS.index, reverse=True)
        for place in range(arguments.splits)
    ]
    about = provenance(shlex.join(["python", *sys.argv]), 0)
    until = start + 60 * arguments.minutes
    one = functools.partial(work, packed=packed, results=arguments.results, until=until, about=about)
    if arguments.jobs == 1:
        sys.exit(not all(list(map(one, tasks))))
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with context.Pool(arguments.jobs, settle, (context.Value("i", 0), torch.cuda.device_count())) as pool:
        sys.exit(not all(pool.map(one, tasks, chunksize=1)))


if __name__ == "__main__":
    main()
