"""Tables for people and programs: predictions for pairs, and the edges of an augmented graph."""

from pathlib import Path

import numpy as np

from thrifty.errors import DataError
from thrifty.graph.apply import ORIGINS, Augmented
from thrifty.graph.model import SignModel
from thrifty.graph.pairs import Pairs, node_numbers
from thrifty.graph.signed import SignedGraph

Table = dict[str, np.ndarray]


def predict_pairs(model: SignModel, pairs: Pairs) -> Table:
    """source, target, probability of a positive sign (NaN where a node is unknown) and label (+1, -1; 0 unknown)."""
    probability = np.full(pairs.num_pairs, np.nan)
    known = pairs.is_known
    probability[known] = model.probability(pairs.source[known], pairs.target[known])
    label = np.where(known, np.where(probability >= model.threshold, 1, -1), 0).astype(np.int8)
    return {"source": pairs.source_id, "target": pairs.target_id, "probability": probability, "label": label}


def edges_of_model(model: SignModel, edges: SignedGraph) -> tuple[SignedGraph, list[str]]:
    """`edges` with the node numbers of the model's graph, and a note where nodes are unknown to it.

    Edges with an unknown node are left out. Raises `DataError` where none is left.
    """
    import polars

    names = edges.names.tolist()
    if model.graph.names.dtype == object:
        column = polars.Series([str(name) for name in names], dtype=polars.String)
    else:
        column = polars.Series([name if isinstance(name, int) else None for name in names], dtype=polars.Int64)
    numbers = node_numbers(column, model.graph.names)
    source, target = numbers[edges.source], numbers[edges.target]
    known = (source >= 0) & (target >= 0)
    if not known.any():
        raise DataError("no edge is between nodes that the model knows; audit edges of the graph it was fitted to")
    part = SignedGraph(source[known], target[known], edges.sign[known], model.graph.names)
    missing = int((~known).sum())
    return part, [f"{missing:,} edges touch a node that the model does not know; left out"] if missing else []


def augmented_tables(new: Augmented) -> tuple[Table, Table]:
    """The edges that there are now, and those that were deleted: each with origin, probability and triangles."""
    tables = []
    for chosen in (new.origin != ORIGINS.index("deleted"), new.origin == ORIGINS.index("deleted")):
        part, names = new.all_edges.take(chosen), new.all_edges.names
        tables.append(
            {
                "source": names[part.source],
                "target": names[part.target],
                "sign": part.sign,
                "origin": np.array([ORIGINS[place] for place in new.origin[chosen]], dtype=object),
                "probability": new.probability[chosen],
                "balanced": new.balanced[chosen],
                "unbalanced": new.unbalanced[chosen],
            }
        )
    return tables[0], tables[1]


def beside(path: Path, word: str) -> Path:
    """`edges.csv.gz` to `edges.deleted.csv.gz`."""
    stem, dot, rest = path.name.partition(".")
    return path.with_name(f"{stem}.{word}{dot}{rest}")
