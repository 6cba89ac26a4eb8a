"""The combination of features: learns what a line cannot, and comes back as it was."""

import numpy as np

from thrifty.graph.combine import Combined, Learning, combine
from thrifty.progress import silent

LEARNING = Learning(hidden=16, networks=2, epochs=20, learning_rate=0.01)


def corners(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positive where both features have the same sign, which no line can tell."""
    features = np.random.default_rng(seed).standard_normal((3000, 2)).astype(np.float32)
    return features, features[:, 0] * features[:, 1] > 0


def test_what_no_line_can_tell_is_learnt() -> None:
    combined = combine(*corners(0), LEARNING, 0, "cpu", silent)
    features, is_positive = corners(1)
    assert ((combined.log_odds(features) > 0) == is_positive).mean() > 0.9


def test_it_repeats_with_the_seed_and_comes_back_as_it_was() -> None:
    features, is_positive = corners(0)
    one, again, other = (combine(features, is_positive, LEARNING, seed, "cpu", silent) for seed in (1, 1, 2))
    assert (one.log_odds(features) == again.log_odds(features)).all()
    assert (one.log_odds(features) != other.log_odds(features)).any()
    restored = Combined.restored(one.tensors(), LEARNING)
    assert (restored.log_odds(features) == one.log_odds(features)).all()
