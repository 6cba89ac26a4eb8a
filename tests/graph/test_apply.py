"""Applying a plan; tests/graph/test_contract.py holds the laws."""

import numpy as np
import pytest

from thrifty.errors import SettingError
from thrifty.graph.apply import apply, plan_of
from thrifty.graph.signed import SignedGraph
from thrifty.plan import Plan


def test_edges_come_from_where_the_plan_says() -> None:
    graph = SignedGraph.of(np.array([0, 1]), np.array([1, 2]), np.array([1, -1]), 4)
    edges = {name: np.array([0.5, 0.1]) for name in ("probability", "balanced", "unbalanced")}
    proposed = {name: np.array([0.9, 0.8]) for name in edges}
    proposed |= {"source": np.array([3, 2], dtype=np.int32), "target": np.array([0, 3], dtype=np.int32)}
    proposed["sign"] = np.array([1, -1], dtype=np.int8)
    new = apply(plan_of("me", np.array([True, False]), np.array([True, False]), edges, proposed), graph)
    assert list(zip(new.graph.source, new.graph.target, new.graph.sign, strict=True)) == [(0, 1, 1), (3, 0, 1)]
    assert new.origin.tolist() == [0, 1, 2]
    assert new.probability.tolist() == [0.5, 0.1, 0.9]
    assert new.counts() == {"kept +": 1, "kept -": 0, "deleted +": 0, "deleted -": 1, "added +": 1, "added -": 0}


def test_a_plan_that_does_not_tell_enough_is_refused(graph: SignedGraph) -> None:
    whole = np.ones(graph.num_edges, dtype=bool)
    plan = plan_of("me", whole, np.zeros(0, dtype=bool), {}, {})
    with pytest.raises(SettingError, match=r"does not tell proposed\.source"):
        apply(plan, graph)
    with pytest.raises(SettingError, match="decides on none"):
        apply(Plan("me", {}), graph)
