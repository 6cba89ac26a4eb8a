"""The stack: two kinds of evidence in one score."""

import numpy as np
import pytest

from thrifty.errors import SettingError
from thrifty.graph.scorers.stack import Stack
from thrifty.graph.signed import SignedGraph
from thrifty.progress import silent


def test_a_tenth_of_the_edges_is_told_by_what_had_not_learnt_from_it(planted: SignedGraph) -> None:
    fitted = Stack(networks=1, epochs=2).fit(planted, 0, None, silent)
    known = fitted.left_out(planted)
    told = np.isfinite(known)
    assert told.mean() == pytest.approx(0.1, abs=0.03)
    whole = fitted.log_odds(planted.source, planted.target)
    assert (known[told] != whole[told]).all()
    assert np.corrcoef(known[told], whole[told])[0, 1] > 0.5


def test_what_cannot_be_stacked_is_refused() -> None:
    for inner in ("stack", "nobody"):
        with pytest.raises(SettingError, match="another scorer"):
            Stack(inner=inner)
    with pytest.raises(SettingError, match="1 or more"):
        Stack(networks=0)
