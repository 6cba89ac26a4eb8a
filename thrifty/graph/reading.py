"""Read signed edges from whatever holds them; every row that is left out is counted and told."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int8, Int32, Shaped

from thrifty import settings
from thrifty.errors import DataError
from thrifty.graph.columns import Columns
from thrifty.graph.edge_table import EdgeTable, load
from thrifty.graph.policies import Policies, once_each
from thrifty.graph.rows import BLANK, NUM_EXAMPLES, Rows, counted, parse
from thrifty.graph.signed import SignedGraph, pair_key

PHRASES = {
    "odd_signs": "with a sign that is not +1, -1 or 0",
    "self_loops": "from a node to itself",
    "zeros": "with a sign or rating of zero",
}
WAYS_OUT = {
    "odd_signs": "if these are ratings, name the column as the rating and give a threshold (--rating, --threshold); "
    "if they are mistakes, odd_signs=drop leaves them out",
    "self_loops": "self_loops=drop leaves them out",
    "zeros": "set zeros to drop, positive or negative",
}


@dataclass(frozen=True)
class Reading:
    """A graph, and what became of each row of its origin.

    `counts` adds up: `rows` is `kept` and all others. `notes` says the same for people, with the rules that were used
    and the first bad rows of each kind.
    """

    graph: SignedGraph
    origin: str
    counts: dict[str, int]
    notes: list[str] = field(default_factory=list)


def read(origin: Any, columns: Columns | None = None, policies: Policies | None = None) -> Reading:
    """Read a signed graph from a file (CSV, TSV, text with spaces, each also packed with gzip; Parquet, or a folder of
    it), a table of polars or pandas, a NetworkX graph, or PyG `Data`.

    Nodes are numbered in the order of their names; edges stay in the order of the rows. Raises `DataError` where
    the origin is unusable, `SettingError` where a policy cannot be followed.
    """
    policies = policies or Policies()
    table = load(origin, columns or Columns())
    rows = parse(table, policies)
    _refuse_too_bad(table, rows, policies)
    counts = {"rows": table.frame.height, "kept": 0, **rows.num_bad, "self_loops": 0, "zeros": 0}
    notes = [*table.notes, *rows.notes, *_told_bad(table, rows)]
    chosen, sign = _with_sign(table, rows, policies, counts, notes)
    source, target, names = number(rows.source.filter(pl.Series(chosen)), rows.target.filter(pl.Series(chosen)))
    weight, time = (None if values is None else values[chosen] for values in (rows.weight, rows.time))
    repeated = once_each(pair_key(source, target, len(names)), sign, time, policies)
    counts["duplicates"], counts["conflicts"] = repeated.num_duplicates, repeated.num_conflicts
    if repeated.num_duplicates:
        notes.append(
            f"duplicates: {counted(repeated.num_duplicates)} left out, the {policies.duplicates} of each stays"
        )
    if repeated.num_conflicts:
        notes.append(
            f"conflicts: {counted(repeated.num_pairs_in_conflict, 'pair')} told with both signs; "
            f"{counted(repeated.num_conflicts)} left out ({_rule(policies.conflicts)})"
        )
    graph = SignedGraph(source, target, sign, names, weight, time).take(repeated.stays)
    if repeated.num_pairs_gone:
        graph = _without_lonely(graph)
    counts["kept"] = graph.num_edges
    if not graph.num_edges:
        raise DataError(f"{table.origin}: none of {counts['rows']:,} rows is an edge; {'; '.join(notes)}")
    rules = ", ".join(f"{name}={value}" for name, value in settings.shown(policies).items())
    told = [_headline(graph, counts), *notes, *_one_sided(graph, rows), f"rules: {rules}"]
    return Reading(graph, table.origin, counts, told)


def number(
    source: pl.Series, target: pl.Series
) -> tuple[Int32[np.ndarray, " rows"], Int32[np.ndarray, " rows"], Shaped[np.ndarray, " nodes"]]:
    """Number the nodes in the order of their names (whole numbers, or texts): two columns of numbers, the names."""
    if source.dtype == pl.String:
        return _number_texts(source, target)
    sides = source.to_numpy(), target.to_numpy()
    if not len(sides[0]):
        return sides[0].astype(np.int32), sides[1].astype(np.int32), np.zeros(0, dtype=np.int64)
    low, high = min(int(side.min()) for side in sides), max(int(side.max()) for side in sides)
    if high - low < 4 * len(source) + 1_000_000:
        # Names lie close together: a table from name to number is quicker than sorting.
        seen = np.zeros(high - low + 1, dtype=bool)
        for side in sides:
            seen[side - low] = True
        numbers = np.cumsum(seen, dtype=np.int32) - np.int32(1)
        return numbers[sides[0] - low], numbers[sides[1] - low], np.flatnonzero(seen) + low
    names = np.unique(np.concatenate([np.unique(side) for side in sides]))
    first, second = (np.searchsorted(names, side).astype(np.int32) for side in sides)
    return first, second, names


def _number_texts(
    source: pl.Series, target: pl.Series
) -> tuple[Int32[np.ndarray, " rows"], Int32[np.ndarray, " rows"], Shaped[np.ndarray, " nodes"]]:
    # Polars gives each text a code of its own, in no order; the codes are then put into the order of the texts.
    kind = pl.Categorical(pl.Categories.random())
    coded = [side.cast(kind) for side in (source, target)]  # both at once: codes live as long as what uses them
    codes = [side.to_physical().to_numpy() for side in coded]
    place = np.full(max(int(code.max(initial=0)) for code in codes) + 1, -1, dtype=np.int64)
    for code, start in zip(codes, (0, len(source)), strict=True):
        place[code] = np.arange(start, start + len(code))
    used = np.flatnonzero(place >= 0)
    texts = pl.concat([source, target])[place[used]]
    order = texts.arg_sort().to_numpy()
    numbers = np.full(len(place), -1, dtype=np.int32)
    numbers[used[order]] = np.arange(len(used), dtype=np.int32)
    return numbers[codes[0]], numbers[codes[1]], texts[order].to_numpy().astype(object)


def _refuse_too_bad(table: EdgeTable, rows: Rows, policies: Policies) -> None:
    num_blank = rows.num_bad.get(BLANK, 0)
    num_bad, num_rows = sum(rows.num_bad.values()) - num_blank, table.frame.height - num_blank
    if num_bad and (num_bad > policies.most_bad * num_rows or num_bad == num_rows):
        raise DataError(
            f"{table.origin}: {num_bad:,} of {num_rows:,} rows are bad, more than the {policies.most_bad:.0%} allowed: "
            f"{'; '.join(_told_bad(table, rows))}; check the columns and what parts them, or allow more (most_bad)"
        )


def _told_bad(table: EdgeTable, rows: Rows) -> list[str]:
    shown = table.shown([row for kind, places in rows.examples.items() if kind != BLANK for row in places])
    notes = []
    for kind, num in rows.num_bad.items():
        places = [shown[row] for row in rows.examples[kind] if row in shown]
        notes.append(f"{kind}: {counted(num)} left out" + (f" ({'; '.join(places)})" if places else ""))
    return notes


def _with_sign(
    table: EdgeTable, rows: Rows, policies: Policies, counts: dict[str, int], notes: list[str]
) -> tuple[Bool[np.ndarray, " rows"], Int8[np.ndarray, " chosen"]]:
    """Which good rows are edges, and their signs; counts and tells self-loops, zeros and odd signs."""
    value = rows.value - policies.threshold if rows.is_rating else rows.value
    chosen = np.ones(len(value), dtype=bool)
    odd = np.zeros(len(value), dtype=bool) if rows.is_rating else ~np.isin(value, (-1.0, 0.0, 1.0))
    if odd.any():
        _settle("odd_signs", odd, policies.odd_signs, table, rows, counts, notes)
    loops = (rows.source == rows.target).to_numpy() & ~odd
    if loops.any():
        _settle("self_loops", loops, policies.self_loops, table, rows, counts, notes)
    zeros = (value == 0) & ~odd & ~loops
    if zeros.any():
        _settle("zeros", zeros, policies.zeros, table, rows, counts, notes)
        if policies.zeros != "drop":
            value = np.where(zeros, 1.0 if policies.zeros == "positive" else -1.0, value)
            zeros[:] = False
    if policies.threshold and not rows.is_rating:
        notes.append(f"threshold: {policies.threshold:g} is not used, as the edges have signs; it parts ratings")
    if rows.is_rating:
        notes.append(f"rating: above {policies.threshold:g} is positive, below it negative, at it zero")
    chosen &= ~(odd | loops | zeros)
    return chosen, np.sign(value[chosen]).astype(np.int8)


def _settle(
    what: str,
    which: Bool[np.ndarray, " rows"],
    policy: str,
    table: EdgeTable,
    rows: Rows,
    counts: dict[str, int],
    notes: list[str],
) -> None:
    """Count and tell rows of one kind, or refuse them."""
    num = int(which.sum())
    first = int(rows.place[int(np.argmax(which))])
    if policy == "error":
        shown = table.shown([first]).get(first, f"row {first + 1:,}")
        raise DataError(f"{table.origin}: {counted(num)} {PHRASES[what]}, the first in {shown}; {WAYS_OUT[what]}")
    if policy == "drop":
        counts[what] = num
    is_taken = f"taken for {policy}" if policy != "drop" else "left out"
    notes.append(f"{what.replace('_', ' ')}: {counted(num)} {is_taken}{_first_of(table, rows, which)}")


def _first_of(table: EdgeTable, rows: Rows, which: Bool[np.ndarray, " rows"]) -> str:
    """The first rows of a kind, in brackets."""
    places = rows.place.filter(pl.Series(which)).head(NUM_EXAMPLES).to_list()
    shown = table.shown(places)
    return f" ({'; '.join(shown[place] for place in places if place in shown)})"


def _rule(conflicts: str) -> str:
    if conflicts == "sum":
        return "the sum of the signs decides, a tie drops the pair"
    return "all of them" if conflicts == "drop" else f"the {conflicts} of each stays"


def _headline(graph: SignedGraph, counts: dict[str, int]) -> str:
    return (
        f"{counted(counts['rows'])}: {counted(graph.num_edges, 'edge')} ({graph.positive_share:.1%} positive) "
        f"between {counted(graph.num_nodes, 'node')}"
    )


def _one_sided(graph: SignedGraph, rows: Rows) -> list[str]:
    if 0 < graph.positive_share < 1:
        return []
    what = "positive" if graph.positive_share else "negative"
    note = f"all signs are {what}: no sign can be learnt from these edges"
    if not rows.is_rating and (rows.value == 0).any():
        note += "; if 0 stands for negative, set zeros to negative"
    elif rows.is_rating:
        note += "; set a threshold that parts the ratings"
    return [note]


def _without_lonely(graph: SignedGraph) -> SignedGraph:
    """The graph without nodes that lost all their edges; names keep their order."""
    used = np.zeros(graph.num_nodes, dtype=bool)
    used[graph.source] = used[graph.target] = True
    numbers = (np.cumsum(used) - 1).astype(np.int32)
    return replace(graph, source=numbers[graph.source], target=numbers[graph.target], names=graph.names[used])
