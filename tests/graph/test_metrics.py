"""Metrics: what they say of predictions that are known to be right, wrong, or of one kind."""

import numpy as np
import pytest

from thrifty.errors import SettingError
from thrifty.graph import metrics

SIGN = np.array([1, 1, 1, -1], dtype=np.int8)


def test_all_names_are_measured() -> None:
    assert tuple(metrics.measure(np.array([0.9, 0.8, 0.7, 0.1]), SIGN)) == metrics.NAMES


def test_a_perfect_prediction() -> None:
    found = metrics.measure(np.array([1.0, 1.0, 1.0, 0.0]), SIGN)
    assert [found[name] for name in metrics.NAMES] == [1, 1, 1, 1, 1, 1, 0, 0]


def test_always_positive() -> None:
    found = metrics.measure(np.full(4, 0.75), SIGN)
    assert found["auc"] == found["auc_hard"] == 0.5
    assert found["f1_micro"] == 0.75
    assert found["f1_binary"] == pytest.approx(6 / 7)
    assert found["f1_macro"] == pytest.approx(3 / 7)
    assert found["ece"] == 0
    assert found["brier"] == pytest.approx(0.1875)


def test_one_sign_has_no_ranking() -> None:
    found = metrics.measure(np.array([0.9, 0.4]), np.array([1, 1], dtype=np.int8))
    assert np.isnan(found["auc"])
    assert np.isnan(found["ap_negative"])
    assert found["f1_micro"] == 0.5
    assert np.isnan(list(metrics.measure(np.zeros(0), np.zeros(0, dtype=np.int8)).values())).all()


def test_a_probability_that_says_too_much_is_seen() -> None:
    probability = np.full(1000, 0.99)
    sign = np.where(np.arange(1000) % 2 == 0, 1, -1).astype(np.int8)
    assert metrics.measure(probability, sign)["ece"] == pytest.approx(0.49)
    assert metrics.reliability(probability, sign > 0) == [(pytest.approx(0.99), 0.5, 1000)]


def test_the_best_threshold_is_the_best_of_all() -> None:
    chance = np.random.default_rng(0)
    sign = np.where(chance.random(300) < 0.8, 1, -1).astype(np.int8)
    probability = np.round(np.clip(0.6 + 0.2 * sign + 0.2 * chance.standard_normal(300), 0, 1), 2)
    chosen = metrics.measure(probability, sign, metrics.best_threshold(probability, sign))["f1_macro"]
    every = [
        metrics.measure(probability, sign, threshold)["f1_macro"] for threshold in np.r_[np.unique(probability), 1.01]
    ]
    assert chosen == pytest.approx(max(every))


def test_a_threshold_needs_edges() -> None:
    with pytest.raises(SettingError, match="found none"):
        metrics.best_threshold(np.zeros(0), np.zeros(0, dtype=np.int8))
