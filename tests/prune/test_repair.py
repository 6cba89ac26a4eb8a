"""The repaired mask meets the budget from below, whatever the scores, and is the same every time."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.budget import Budget
from thrifty.errors import SettingError
from thrifty.prune.cost import Polynomial
from thrifty.prune.coupling import Extent, Group, Slice
from thrifty.prune.repair import repair


def chain(sizes):
    """Layers in a row, each reading what the one before makes: the cost of a plain network."""
    groups = [
        Group(f"layer{n}", size, (Slice(f"layer{n}.weight", 0, torch.arange(size)[:, None], "makes"),))
        for n, size in enumerate(sizes)
    ]
    ends = [Extent(3.0, {}), *(Extent(0.0, {g.name: torch.ones(g.size).double()}) for g in groups), Extent(10.0, {})]
    return Polynomial.of(groups, [(2.0, pair) for pair in pairwise(ends)])


@st.composite
def problems(draw):
    sizes = draw(st.lists(st.integers(2, 24), min_size=1, max_size=4))
    seed, share = draw(st.integers(0, 10_000)), draw(st.floats(0.0, 1.0))
    round_to, minimum = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([1, 3]))
    return sizes, seed, share, round_to, minimum


def drawn(sizes, seed):
    """A network, scores and a mask."""
    generator = torch.Generator().manual_seed(seed)
    scores = {f"layer{n}": torch.randn(size, generator=generator) for n, size in enumerate(sizes)}
    keep = {name: (torch.rand(len(s), generator=generator) < 0.7).float() for name, s in scores.items()}
    return chain(sizes), scores, keep


def lowest(scores, round_to, minimum):
    counts = {name: min(len(s), -(-minimum // round_to) * round_to) for name, s in scores.items()}
    return {name: (torch.arange(len(s)) < counts[name]).float() for name, s in scores.items()}


@settings(max_examples=60)
@given(problems())
def test_the_repaired_mask_fits_and_nothing_more_would(problem):
    sizes, seed, share, round_to, minimum = problem
    cost, scores, keep = drawn(sizes, seed)
    floor = float(cost(lowest(scores, round_to, minimum)))
    budget = Budget(cost, floor + share * (float(cost({})) - floor), "FLOPs")
    found = repair(scores, keep, budget, round_to, minimum)
    assert budget.fits(found)
    for name, kept in found.items():
        count, size = int(kept.sum()), len(kept)
        assert set(kept.tolist()) <= {0.0, 1.0}
        assert count >= min(minimum, size)
        assert count % round_to == 0 or count == size
        if count < size:
            more = kept.clone()
            more[(kept == 0).nonzero().flatten()[: min(size, (count // round_to + 1) * round_to) - count]] = 1
            assert cost({**found, name: more}) > budget.limit
    again = repair(scores, keep, budget, round_to, minimum)
    assert all(torch.equal(found[name], again[name]) for name in found)


@settings(max_examples=30)
@given(problems())
def test_of_one_group_the_parts_that_go_score_no_more_than_those_that_stay(problem):
    sizes, seed, share, _, _ = problem
    cost, scores, _ = drawn(sizes, seed)
    budget = Budget(cost, max(float(cost(lowest(scores, 1, 1))), share * float(cost({}))), "FLOPs")
    found = repair(scores, {name: torch.ones(len(s)) for name, s in scores.items()}, budget)
    for name, kept in found.items():
        if 0 < kept.sum() < len(kept):
            assert scores[name][kept == 1].min() >= scores[name][kept == 0].max()


@pytest.mark.parametrize("share", [0.35, 0.45, 0.6])
@pytest.mark.parametrize("round_to", [1, 8])
def test_a_network_of_many_layers_comes_within_half_a_percent(share, round_to):
    cost = chain([16] * 6 + [32] * 6 + [64] * 6)
    scores = {f"layer{n}": torch.rand(size) for n, size in enumerate([16] * 6 + [32] * 6 + [64] * 6)}
    budget = Budget(cost, share * float(cost({})), "FLOPs")
    found = repair(scores, {name: torch.ones(len(s)) for name, s in scores.items()}, budget, round_to)
    assert 0.995 * budget.limit <= budget.spent(found) <= budget.limit


def test_a_mask_that_already_fits_exactly_is_left_as_it_is():
    cost, keep = chain([8, 8]), {"layer0": torch.eye(8)[:3].sum(0), "layer1": torch.eye(8)[2:6].sum(0)}
    scores = {name: torch.rand(8) for name in keep}
    found = repair(scores, keep, Budget(cost, float(cost(keep)), "FLOPs"))
    assert all(torch.equal(found[name], keep[name]) for name in keep)


def test_of_parts_that_score_the_same_the_dearer_ones_go():
    cost = chain([8, 8])
    cost.scales[0] = 1000.0  # layer0 now costs by far the most
    scores = {"layer0": torch.ones(8), "layer1": torch.ones(8)}
    found = repair(scores, scores, Budget(cost, 0.5 * float(cost({})), "FLOPs"))
    assert found["layer0"].sum() < 8
    assert found["layer1"].sum() == 8


def test_a_budget_below_the_minimum_is_refused_with_the_least_possible():
    scores = {"layer0": torch.rand(8)}
    with pytest.raises(SettingError, match="the least that may be kept costs 26"):
        repair(scores, {"layer0": torch.ones(8)}, Budget(chain([8]), 25.0, "FLOPs"))
