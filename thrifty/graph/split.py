"""Split the edges of a graph into those to learn from and those to be tested on."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64

from thrifty import data
from thrifty.errors import DataError, SettingError
from thrifty.graph.known import NAMES
from thrifty.graph.pairs import node_numbers
from thrifty.graph.signed import SignedGraph, need_both_signs, pair_key

HOW = "random, sga (all five official splits), sga:1 to sga:5, temporal, cold"
TEST_SHARE = 0.2
NUM_OFFICIAL = 5
DEGREES = ((0, 0), (1, 4), (5, 19), (20, None))
"""Bins of the number of training edges, both directions, of the end of a test edge that has fewer."""


@dataclass(frozen=True)
class Split:
    """Edges to learn from and edges to be tested on: never the same one, and not always all of them."""

    name: str
    train: Bool[np.ndarray, " edges"]
    test: Bool[np.ndarray, " edges"]
    note: str

    def __post_init__(self) -> None:
        if (self.train & self.test).any():
            raise DataError(f"split {self.name}: {int((self.train & self.test).sum()):,} edges are in both parts")


def splits(graph: SignedGraph, how: str, num: int = 5, seed: int = 0, origin: str | None = None) -> list[Split]:
    """Return the splits of `graph` that `how` names.

    - `random`: `num` independent ones, a fifth of each sign to be tested on.
    - `sga`, `sga:K`: the five official ones of SGA, or its K-th, of the known graph `origin`.
    - `temporal`: the last fifth by time is tested on; edges of one time are never parted, edges without a time are
      left out. There is one, whatever `num` is.
    - `cold`: `num` ones; some nodes are hidden from training, and every edge that touches one of them is tested on.
      About a fifth of the edges, as nearly as whole nodes allow.

    Raises `SettingError` for another `how`, `DataError` where the graph cannot be split that way.
    """
    kind, _, number = how.partition(":")
    if num < 1:
        raise SettingError(f"{num} splits were asked for; ask for one or more")
    need_both_signs(graph)
    if kind == "sga" and (not number or number in map(str, range(1, NUM_OFFICIAL + 1))):
        found = official_splits(graph, origin, [int(number)] if number else list(range(1, NUM_OFFICIAL + 1)))
    elif how == "random":
        found = [random_split(graph, seed + turn) for turn in range(num)]
    elif how == "temporal":
        found = [temporal_split(graph)]
    elif how == "cold":
        found = [cold_split(graph, seed + turn) for turn in range(num)]
    else:
        raise SettingError(f"there is no split {how!r}; use one of {HOW}")
    for split in found:
        _check_usable(graph, split)
    return found


def random_split(graph: SignedGraph, seed: int) -> Split:
    """A fifth of the edges of each sign, drawn at random, is tested on."""
    random = np.random.default_rng(seed)
    test = np.zeros(graph.num_edges, dtype=bool)
    for sign in (1, -1):
        edges = np.flatnonzero(graph.sign == sign)
        test[random.permutation(edges)[: round(TEST_SHARE * len(edges))]] = True
    return Split(f"random:{seed}", ~test, test, f"a random fifth of each sign, seed {seed}")


def official_splits(graph: SignedGraph, origin: str | None, which: list[int]) -> list[Split]:
    """Splits `which` (1 to 5) that SGA published for the known graph `origin`; edges that it lacks are left out."""
    if origin not in NAMES:
        raise SettingError(
            f"SGA's splits are of {', '.join(NAMES)}; {origin or 'a graph without a name'} is none of them: "
            "name one of these as the edges, or split at random"
        )
    path = next(path for path in data.find("sga-splits") if path.name == f"{origin}.csv.gz")
    masks = pl.read_csv(path, schema={"source": pl.Int64, "target": pl.Int64, "testmask": pl.Int64})
    ends = [node_numbers(masks[side], graph.names) for side in ("source", "target")]
    num_unknown = int(((ends[0] < 0) | (ends[1] < 0)).sum())
    place = places_of(graph, pair_key(ends[0], ends[1], graph.num_nodes))
    if num_unknown or (place < 0).any():
        num_unknown = max(num_unknown, int((place < 0).sum()))
        raise DataError(
            f"{num_unknown:,} of {masks.height:,} edges of SGA's splits of {origin} are not in the graph; "
            "read the graph as it was published (no other columns or policies)"
        )
    is_told = np.zeros(graph.num_edges, dtype=bool)
    is_told[place] = True
    found = []
    for one in which:
        test = np.zeros(graph.num_edges, dtype=bool)
        test[place] = (masks["testmask"].to_numpy() >> (one - 1)) & 1 == 1
        found.append(Split(f"sga:{one}", is_told & ~test, test, f"official split {one} of SGA for {origin}"))
    return found


def temporal_split(graph: SignedGraph) -> Split:
    """The last fifth by time is tested on, cut between two times, as near to a fifth as they allow."""
    if graph.time is None:
        raise DataError("a temporal split needs times, and the graph has none; name the column of times")
    has_time = np.isfinite(graph.time)
    times, counts = np.unique(graph.time[has_time], return_counts=True)
    if len(times) < 2:
        raise DataError(
            f"a temporal split needs at least two times; found {len(times)} in "
            f"{graph.num_edges:,} edges: split at random"
        )
    later = counts[::-1].cumsum()[::-1]
    first = 1 + int(np.argmin(np.abs(later[1:] - TEST_SHARE * has_time.sum())))
    test = has_time & (np.where(has_time, graph.time, -np.inf) >= times[first])
    train = has_time & ~test
    note = f"the last {test.sum():,} of {has_time.sum():,} edges by time ({test.sum() / has_time.sum():.1%})"
    if not has_time.all():
        note += f"; {(~has_time).sum():,} edges without a time are left out"
    return Split("temporal", train, test, note)


def cold_split(graph: SignedGraph, seed: int) -> Split:
    """Hide random nodes from training; every edge that touches a hidden node is tested on."""
    rank = np.random.default_rng(seed).permutation(graph.num_nodes)
    hidden_at = np.minimum(rank[graph.source], rank[graph.target])
    touched = np.bincount(hidden_at, minlength=graph.num_nodes).cumsum()
    num_hidden = 1 + int(np.argmin(np.abs(touched - TEST_SHARE * graph.num_edges)))
    test = hidden_at < num_hidden
    both = (rank[graph.source] < num_hidden) & (rank[graph.target] < num_hidden)
    note = (
        f"{num_hidden:,} of {graph.num_nodes:,} nodes are never seen in training; {test.sum():,} edges "
        f"({test.mean():.1%}) touch one of them, {both.sum():,} touch two; seed {seed}"
    )
    return Split(f"cold:{seed}", ~test, test, note)


def slices(graph: SignedGraph, split: Split) -> dict[str, Bool[np.ndarray, " tested"]]:
    """Parts of the test edges, as masks over them: with and without their reverse in training, and by the number of
    training edges (in both directions) of the end that has fewer."""
    train, test = graph.take(split.train), graph.take(split.test)
    reverse = np.isin(pair_key(test.target, test.source, graph.num_nodes), train.key)
    ends = np.concatenate([train.source, train.target])
    degree = np.bincount(ends, minlength=graph.num_nodes)
    least = np.minimum(degree[test.source], degree[test.target])
    parts = {"reverse in training": reverse, "no reverse in training": ~reverse}
    for low, high in DEGREES:
        name = f"degree {low}+" if high is None else f"degree {low}" if low == high else f"degree {low}-{high}"
        parts[name] = (least >= low) & (least <= (np.inf if high is None else high))
    return parts


def places_of(graph: SignedGraph, key: Int64[np.ndarray, " pairs"]) -> Int64[np.ndarray, " pairs"]:
    """Which edge of the graph has each key; -1 where none has."""
    own = graph.key
    order = np.argsort(own)
    place = order[np.minimum(np.searchsorted(own, key, sorter=order), max(len(own) - 1, 0))]
    return np.where(own[place] == key, place, -1)


def _check_usable(graph: SignedGraph, split: Split) -> None:
    for what, part in (("learn from", split.train), ("be tested on", split.test)):
        num_positive = int((graph.sign[part] > 0).sum())
        num_negative = int(part.sum()) - num_positive
        if not num_positive or not num_negative:
            raise DataError(
                f"split {split.name} leaves {num_positive:,} positive and {num_negative:,} negative edges to {what}; "
                "both signs are needed: give more edges, or split another way"
            )
