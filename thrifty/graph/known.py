"""Signed graphs by name: the public ones, files, and a synthetic one where nothing was named."""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

from thrifty import data
from thrifty.errors import SettingError
from thrifty.graph.columns import Columns
from thrifty.graph.policies import Policies
from thrifty.graph.reading import Reading, read
from thrifty.graph.synthetic import SyntheticGraph

NAMES = ("bitcoin-alpha", "bitcoin-otc", "epinions", "slashdot", "wiki-elec", "wiki-rfa")
"""Public graphs that `thrifty data` knows."""


def load(
    origin: Any = None, columns: Columns | None = None, policies: Policies | None = None, seed: int = 0
) -> Reading:
    """Read the known graph of that name, or what `reading.read` reads; without an origin, make a synthetic graph.

    A file with the name of a known graph is read as `./NAME`. Raises `DataError` where a known graph is not on this
    machine; `thrifty data get NAME` fetches it.
    """
    if origin is None:
        return synthetic(seed)
    if isinstance(origin, str) and origin in NAMES:
        (path,) = data.find(origin)
        return replace(read(path, columns, policies), origin=origin)
    if isinstance(origin, str) and not Path(origin).suffix and not Path(origin).expanduser().exists():
        close = difflib.get_close_matches(origin, NAMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"graphs with a name are {', '.join(NAMES)}"
        raise SettingError(f"there is no file and no graph {origin!r}; {hint}")
    return read(origin, columns, policies)


def synthetic(seed: int = 0) -> Reading:
    """A generated graph, as if it had been read."""
    settings = SyntheticGraph()
    graph = settings.make(seed)
    counts = {"rows": graph.num_edges, "kept": graph.num_edges}
    notes = [
        f"SYNTHETIC: no edges were named, so {settings!r} made {graph.num_edges:,} edges "
        f"({graph.positive_share:.1%} positive) between {graph.num_nodes:,} nodes, seed {seed}; "
        "its numbers say nothing about real graphs"
    ]
    return Reading(graph, f"synthetic (seed {seed})", counts, notes)
