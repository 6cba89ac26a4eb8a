"""Turn a plan into a new signed graph that tells of every edge where it comes from."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int8

from thrifty.errors import SettingError
from thrifty.graph.signed import SignedGraph
from thrifty.plan import Plan

ORIGINS = ("kept", "deleted", "added")


@dataclass(frozen=True)
class Augmented:
    """`graph` holds the edges that were kept, then those that were added.

    The other fields tell of every edge, the deleted ones included: its place in `ORIGINS`, what the scorer thinks of
    its sign (P of that sign, NaN where nothing was scored), and the balanced and unbalanced triangles it stands in,
    or would, in the graph as it was.
    """

    graph: SignedGraph
    all_edges: SignedGraph
    origin: Int8[np.ndarray, " edges"]
    probability: Float64[np.ndarray, " edges"]
    balanced: Float64[np.ndarray, " edges"]
    unbalanced: Float64[np.ndarray, " edges"]

    def counts(self) -> dict[str, int]:
        """How many edges of each sign were kept, deleted and added: `added -` and so on."""
        signs = ((1, "+"), (-1, "-"))
        return {
            f"{word} {mark}": int(((self.origin == place) & (self.all_edges.sign == sign)).sum())
            for place, word in enumerate(ORIGINS)
            for sign, mark in signs
        }


def apply(plan: Plan, graph: SignedGraph) -> Augmented:
    """The graph that `plan` describes. Raises `SettingError` where the plan is for a graph with other edges."""
    keep = plan.keep.get("edges")
    if keep is None or keep.numel() != graph.num_edges:
        found = "none" if keep is None else f"{keep.numel():,}"
        raise SettingError(f"the plan decides on {found} edges, the graph has {graph.num_edges:,}; plan for this graph")
    stays = keep.numpy() > 0
    taken = plan.keep["proposed"].numpy() > 0
    source, target, sign = (_evidence(plan, f"proposed.{name}")[taken] for name in ("source", "target", "sign"))
    kept = graph.take(stays)
    added = SignedGraph(source, target, sign, graph.names)
    new = kept.joined(source, target, sign) if len(source) else kept
    parts = (kept, graph.take(~stays), added)
    whole = SignedGraph(
        np.concatenate([part.source for part in parts]),
        np.concatenate([part.target for part in parts]),
        np.concatenate([part.sign for part in parts]),
        graph.names,
    )
    origin = np.repeat(np.arange(3, dtype=np.int8), [part.num_edges for part in parts])
    facts = []
    for name in ("probability", "balanced", "unbalanced"):
        old, proposed = _evidence(plan, f"edges.{name}"), _evidence(plan, f"proposed.{name}")
        facts.append(np.concatenate([old[stays], old[~stays], proposed[taken]]).astype(np.float64))
    return Augmented(new, whole, origin, *facts)


def plan_of(
    method: object,
    keep: np.ndarray,
    take: np.ndarray,
    edges: dict[str, np.ndarray],
    proposed: dict[str, np.ndarray],
) -> Plan:
    """A plan from what a method found: `keep` and `take` are masks over the edges and over the proposed ones, `edges`
    and `proposed` the facts that `apply` hands on."""
    parts = {"edges": torch.from_numpy(keep.astype(np.float32)), "proposed": torch.from_numpy(take.astype(np.float32))}
    facts = {f"edges.{name}": values for name, values in edges.items()}
    facts |= {f"proposed.{name}": values for name, values in proposed.items()}
    return Plan(repr(method), parts, {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in facts.items()})


def _evidence(plan: Plan, name: str) -> np.ndarray:
    if name not in plan.evidence:
        raise SettingError(f"the plan by {plan.method} does not tell {name}; plan again")
    return plan.evidence[name].numpy()
