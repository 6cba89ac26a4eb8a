"""A threshold for each layer rises until the budget is met."""

import pytest
import torch
from conftest import fresh

from thrifty.errors import SettingError
from thrifty.prune.job import PruneJob
from thrifty.prune.layout import Layout
from thrifty.prune.methods.lapp import Lapp, _Thresholds


def test_margins_are_in_terms_of_the_mean_of_the_layer() -> None:
    thresholds = _Thresholds(Layout({"a": 2, "b": 2}), torch.device("cpu"), 0.1)
    with torch.no_grad():
        thresholds.values.copy_(torch.tensor([0.5, 1.0]))
    margin = thresholds.margin(torch.tensor([1.0, 3.0, 10.0, 30.0]))
    assert margin.tolist() == pytest.approx([0.0, 1.0, -0.5, 0.5])


def test_thresholds_rise_as_the_budget_tightens(made_job: PruneJob, monkeypatch) -> None:
    seen = []
    step = _Thresholds.step

    def noted(self, gradient: torch.Tensor) -> None:
        step(self, gradient)
        seen.append(self.values.detach().clone())

    monkeypatch.setattr(_Thresholds, "step", noted)
    Lapp(every=1, end=0.9, learning_rate=0.05, strength=20.0).plan(fresh(made_job))
    assert len(seen) > 20
    assert seen[-1].mean() > seen[0].mean()
    assert seen[-1].max() > 0.3


def test_an_order_that_is_none_is_refused() -> None:
    with pytest.raises(SettingError, match="start < end"):
        Lapp(start=0.5, end=0.4)
