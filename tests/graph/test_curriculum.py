"""The curriculum: easy edges first, every edge in the end."""

import numpy as np
import pytest

from thrifty.errors import SettingError
from thrifty.graph.curriculum import Pacing, difficulty
from thrifty.graph.scorer import Curriculum
from thrifty.graph.signed import SignedGraph

HARD = np.r_[np.zeros(80), np.linspace(0.1, 1, 20)]
SIGN = np.where(np.arange(100) % 5 == 0, -1, 1).astype(np.int8)


def test_the_first_stage_and_the_last_are_those_of_the_paper() -> None:
    pacing = Pacing(HARD, SIGN, seed=0, per_sign=False)
    assert isinstance(pacing, Curriculum)
    assert len(pacing.edges_at(0.0)) == round(0.275 * 100)
    assert len(pacing.edges_at(0.5)) == round((0.25 + 0.75 * 16 / 30) * 100)
    assert len(pacing.edges_at(29 / 30)) == len(pacing.edges_at(1.0)) == 100


def test_no_edge_leaves_and_easy_ones_come_first() -> None:
    pacing = Pacing(HARD, SIGN, seed=0, per_sign=False)
    before: set[int] = set()
    for stage in range(30):
        now = set(pacing.edges_at(stage / 30).tolist())
        assert before <= now
        left = [HARD[edge] for edge in set(range(100)) - now]
        assert not left or max(HARD[list(now)]) <= min(left)
        before = now


def test_pacing_by_sign_keeps_the_shares() -> None:
    chosen = Pacing(HARD, SIGN, seed=0).edges_at(0.0)
    assert (SIGN[chosen] < 0).sum() == round(0.275 * 20)


def test_ties_are_broken_by_the_seed_or_not_at_all() -> None:
    one, other = (Pacing(HARD, SIGN, seed=seed).edges_at(0.0) for seed in (1, 2))
    assert one.tolist() != other.tolist()
    stable = Pacing(HARD, SIGN, seed=1, per_sign=False, ties="stable").edges_at(0.0)
    assert stable.tolist() == list(range(round(0.275 * 100)))


def test_an_edge_against_its_surroundings_is_hard() -> None:
    source, target = np.array([0, 1, 2, 3, 3]), np.array([1, 2, 0, 0, 1])
    graph = SignedGraph.of(source, target, np.array([1, 1, 1, 1, -1]))
    assert difficulty(graph).tolist() == [0.5, 0, 0, 1, 1]


def test_pacing_that_never_starts_is_refused() -> None:
    with pytest.raises(SettingError, match="start"):
        Pacing(HARD, SIGN, seed=0, start=0.0)
