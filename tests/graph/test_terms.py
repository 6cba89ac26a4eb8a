"""Terms of nodes: logits add up, and what is stored scores the same."""

import numpy as np
import pytest

from thrifty.graph.signed import SignedGraph
from thrifty.graph.terms import Terms, log_prior

A, B = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
SOURCE, TARGET = np.array([0, 1, 4], np.int32), np.array([1, 0, 2], np.int32)


def test_log_odds_are_the_gap_of_the_logits_and_the_prior() -> None:
    logits = A[SOURCE].astype(float) + B[TARGET]
    assert np.allclose(Terms(A, B, 0.5).log_odds(SOURCE, TARGET), logits[:, 0] - logits[:, 1] + 0.5)


def test_restored_terms_are_the_same() -> None:
    terms = Terms(A, B, 0.123456789)
    again = Terms.restored(terms.tensors())
    assert (again.log_odds(SOURCE, TARGET) == terms.log_odds(SOURCE, TARGET)).all()


def test_prior_is_finite_with_one_sign_only() -> None:
    graph = SignedGraph.of(SOURCE, TARGET, np.array([1, 1, 1]))
    assert log_prior(graph) == pytest.approx(np.log(4))
