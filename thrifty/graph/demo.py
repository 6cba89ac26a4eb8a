"""The graph part of `thrifty demo`: signs of a real graph predicted, judged and doubted, in less than a minute."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from thrifty import catalogue, data
from thrifty.graph import known
from thrifty.graph.audit import audit
from thrifty.graph.curriculum import difficulty
from thrifty.graph.evaluate import Entry, evaluate, report
from thrifty.graph.model import SignModel
from thrifty.graph.signed import SignedGraph
from thrifty.graph.split import splits
from thrifty.plots import Plot, Series
from thrifty.progress import Track
from thrifty.report import Exchange, Report, provenance

_SUSPECTS = 10
_BINS = 10


def run(command: str, track: Track, say: Callable[[str], None]) -> Report:
    """Evaluate the default scorer on Bitcoin-Alpha, or on a synthetic graph where that is not on this machine."""
    start = time.perf_counter()
    triads = catalogue.find("graph", "triads", "scorers")
    origin = "bitcoin-alpha" if data.is_here("bitcoin-alpha") else None
    read = known.load(origin)
    say(f"signed graph: {read.notes[0]}")
    how = "sga" if origin and data.is_here("sga-splits") else "random"
    found = splits(read.graph, how, 5, 0, origin)
    say("the first time, the counting kernels are compiled, which takes some seconds")
    rows = evaluate(read.graph, [Entry(triads(reach=2)), Entry(triads())], found, 1, track)
    model = SignModel.fit(read.graph, triads())
    notes = [*read.notes[:1], f"difficulty: {_told(read.graph)}"]
    told = report(f"Who is trusted: signs of {read.origin}", rows, notes, provenance(command, 0))
    return replace(
        told,
        plots=[*told.plots, _histogram(read.graph)],
        exchanges=[_suspects(model, read.graph)],
        provenance=provenance(command, time.perf_counter() - start),
    )


def _suspects(model: SignModel, graph: SignedGraph) -> Exchange:
    """The edges that the model doubts most, with reasons."""
    found = audit(model, graph)
    names, answers = graph.names, {}
    for row in range(min(_SUSPECTS, graph.num_edges)):
        source, target = names[found.edges.source[row]], names[found.edges.target[row]]
        verb = "trusts" if found.edges.sign[row] > 0 else "distrusts"
        answers[f"{source} {verb} {target}: believed {found.belief[row]:.2%}"] = found.reason(row)
    return Exchange("Which edges would a trust desk look at first?", answers)


def _histogram(graph: SignedGraph) -> Plot:
    hard = difficulty(graph)
    middle = ((np.arange(_BINS) + 0.5) / _BINS).tolist()
    series = []
    for word, sign in (("positive edges", 1), ("negative edges", -1)):
        counts, _ = np.histogram(hard[graph.sign == sign], _BINS, (0, 1))
        series.append(Series(word, middle, (counts / counts.sum()).tolist()))
    return Plot(
        "How hard edges are",
        "difficulty: share of unbalanced triangles",
        "share of the edges",
        series,
        log_y=True,
        caption="A curriculum trains from the left to the right; most edges stand in no unbalanced triangle.",
    )


def _told(graph: SignedGraph) -> str:
    hard = difficulty(graph)
    shares = [float((hard[graph.sign == sign] == 0).mean()) for sign in (1, -1)]
    return f"{shares[0]:.0%} of the positive and {shares[1]:.0%} of the negative edges are in no unbalanced triangle"
