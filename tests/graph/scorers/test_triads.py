"""Triads: what the weights say, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from thrifty import settings
from thrifty.errors import DataError, SettingError
from thrifty.graph.curriculum import Pacing
from thrifty.graph.scorers.triads import Triads
from thrifty.graph.signed import SignedGraph
from thrifty.progress import silent


def test_the_score_of_an_edge_does_not_depend_on_its_own_sign(graph: SignedGraph) -> None:
    fitted = Triads().fit(graph, 0, None, silent)
    for edge in range(10):
        sign = graph.sign.copy()
        sign[edge] *= -1
        other = Triads().restore(replace(graph, sign=sign), fitted.tensors())
        u, v = graph.source[[edge]], graph.target[[edge]]
        assert fitted.log_odds(u, v) == pytest.approx(other.log_odds(u, v), abs=1e-3)


def test_a_sample_of_the_edges_learns_nearly_the_same(planted: SignedGraph) -> None:
    whole = Triads(reach=2).fit(planted, 0, None, silent).log_odds(planted.source, planted.target)
    part = Triads(reach=2, max_edges=planted.num_edges // 2).fit(planted, 0, None, silent)
    assert np.corrcoef(whole, part.log_odds(planted.source, planted.target))[0, 1] > 0.95


def test_equal_signs_are_refused(graph: SignedGraph) -> None:
    with pytest.raises(DataError, match="edges are positive"):
        Triads().fit(replace(graph, sign=np.ones_like(graph.sign)), 0, None, silent)


def test_what_cannot_be_is_refused(graph: SignedGraph) -> None:
    with pytest.raises(SettingError, match="use one of 2, 3"):
        settings.read(Triads, {"reach": "4"})
    with pytest.raises(SettingError, match="strength"):
        Triads(strength=0.0)
    with pytest.raises(SettingError, match="without epochs"):
        Triads().fit(graph, 0, Pacing(np.zeros(graph.num_edges), graph.sign, seed=0), silent)
