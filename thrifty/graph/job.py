"""What is given when a signed graph is to be augmented: its training edges, and how many there may be afterwards."""

from dataclasses import dataclass

from thrifty.budget import Budget, read_amount
from thrifty.errors import SettingError
from thrifty.graph import cost
from thrifty.graph.signed import SignedGraph, need_both_signs
from thrifty.progress import Track, silent

_WIDEST = 100  # a budget above so many times the edges is a slip of the keyboard


@dataclass(frozen=True)
class GraphJob:
    """A graph whose edges may be deleted and added within `budget` edges. Test edges must not be in it."""

    graph: SignedGraph
    budget: Budget
    seed: int = 0
    track: Track = silent

    @staticmethod
    def of(graph: SignedGraph, keep: str = "200%", seed: int = 0, track: Track = silent) -> "GraphJob":
        """A job for `graph`. `keep` is the most edges there may be afterwards: a share of those there are (`110%`,
        or `0.5` for half), or a number (`30000`). Raises `SettingError` for anything else, `DataError` where all signs
        are equal."""
        need_both_signs(graph)
        limit = read_amount(keep, graph.num_edges, most=_WIDEST)
        if limit < 1:
            raise SettingError(f"budget {keep}: {limit:g} edges are less than 1; ask for 50% to 200%")
        return GraphJob(graph, Budget(cost.num_edges, int(limit), "edges"), seed, track)
