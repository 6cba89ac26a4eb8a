"""Jobs: the budget is read, and what cannot be met is refused."""

from dataclasses import replace

import numpy as np
import pytest

from thrifty.errors import DataError, SettingError
from thrifty.graph.job import GraphJob
from thrifty.graph.signed import SignedGraph


@pytest.mark.parametrize(("keep", "limit"), [("110%", 1.1), ("50%", 0.5), ("0.5", 0.5), ("1", 1.0), ("9900%", 99.0)])
def test_a_budget_is_a_share_or_a_number(graph: SignedGraph, keep: str, limit: float) -> None:
    assert GraphJob.of(graph, keep).budget.limit == int(limit * graph.num_edges)


def test_a_number_of_edges_is_one(graph: SignedGraph) -> None:
    assert GraphJob.of(graph, "150").budget.limit == 150


@pytest.mark.parametrize("keep", ["0%", "-5%", "abc%", "abc", "100000%", "0"])
def test_a_budget_that_cannot_be_is_refused(graph: SignedGraph, keep: str) -> None:
    with pytest.raises(SettingError, match="budget"):
        GraphJob.of(graph, keep)


def test_a_budget_of_nothing_is_refused_with_the_number_of_edges(graph: SignedGraph) -> None:
    with pytest.raises(SettingError, match=f"0 is not above 0 and at most 100 times the whole, {graph.num_edges}$"):
        GraphJob.of(graph, "0")


def test_one_sign_is_refused(graph: SignedGraph) -> None:
    with pytest.raises(DataError, match="positive"):
        GraphJob.of(replace(graph, sign=np.ones_like(graph.sign)))
