"""The laws of every method in the folder that changes a signed graph."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from thrifty import catalogue
from thrifty.errors import SettingError
from thrifty.graph.apply import apply
from thrifty.graph.balance import balance
from thrifty.graph.job import GraphJob
from thrifty.graph.neighbours import Neighbours
from thrifty.graph.signed import SignedGraph
from thrifty.plan import Plan

NAMES = catalogue.names("graph")
PLANS: dict[str, Plan] = {}


@cache
def method_of(name: str) -> Any:
    """The method with a short search where it has one."""
    method = catalogue.find("graph", name)()
    return replace(method, scorer="triads") if name == "sga_tuned" else method


def planned(name: str, graph: SignedGraph) -> Plan:
    """The plan for the planted graph, which is the same in every test."""
    if name not in PLANS:
        PLANS[name] = method_of(name).plan(GraphJob.of(graph))
    return PLANS[name]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_no_added_edge_makes_an_unbalanced_triangle(name: str, planted: SignedGraph) -> None:
    new = apply(planned(name, planted), planted)
    added = new.all_edges.take(new.origin == 2)
    unbalanced = balance(Neighbours.of(new.graph), added.source, added.target, added.sign)[1]
    assert (unbalanced == 0).all()


def test_no_edge_comes_from_outside_the_job(name: str, planted: SignedGraph) -> None:
    train = planted.take(np.arange(planted.num_edges) % 5 > 0)
    new = apply(method_of(name).plan(GraphJob.of(train)), train)
    assert np.isin(new.all_edges.take(new.origin < 2).key, train.key).all()


def test_counts_are_within_the_budget(name: str, planted: SignedGraph) -> None:
    job = GraphJob.of(planted, "101%")
    plan = method_of(name).plan(job)
    assert job.budget.fits(plan.keep)
    assert apply(plan, planted).graph.num_edges == job.budget.spent(plan.keep)


def test_a_plan_repeats_with_its_seed_and_survives_saving(name: str, planted: SignedGraph, tmp_path) -> None:
    one = planned(name, planted)
    assert method_of(name).plan(GraphJob.of(planted)) == one
    one.save(tmp_path / "plan.safetensors")
    loaded = Plan.load(tmp_path / "plan.safetensors")
    assert loaded == one
    for fact, values in one.evidence.items():
        assert torch.equal(loaded.evidence[fact].nan_to_num(-1), values.nan_to_num(-1)), fact
    assert apply(loaded, planted).counts() == apply(one, planted).counts()


def test_every_edge_is_accounted_for(name: str, planted: SignedGraph) -> None:
    new = apply(planned(name, planted), planted)
    counts = new.counts()
    assert sum(counts.values()) == new.all_edges.num_edges
    assert counts["kept +"] + counts["kept -"] + counts["deleted +"] + counts["deleted -"] == planted.num_edges
    assert counts["kept +"] + counts["kept -"] + counts["added +"] + counts["added -"] == new.graph.num_edges


def test_a_plan_for_another_graph_is_refused(name: str, planted: SignedGraph) -> None:
    with pytest.raises(SettingError, match="plan for this graph"):
        apply(planned(name, planted), planted.take(np.arange(10)))
