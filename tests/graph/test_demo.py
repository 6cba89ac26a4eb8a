"""The graph part of the demo: it says what the graph is, judges, plots and doubts."""

import pytest

from thrifty import data
from thrifty.graph import demo
from thrifty.progress import silent


@pytest.mark.parametrize("has_data", [True, False])
def test_the_demo_judges_plots_and_doubts(monkeypatch: pytest.MonkeyPatch, has_data: bool) -> None:
    if has_data and not (data.is_here("bitcoin-alpha") and data.is_here("sga-splits")):
        pytest.skip("the data sets bitcoin-alpha and sga-splits are not on this machine")
    if not has_data:
        monkeypatch.setattr(data, "is_here", lambda name: False)
    said: list[str] = []
    report = demo.run("thrifty demo", silent, said.append)
    assert ("SYNTHETIC" in " ".join(report.notes)) is not has_data
    assert [row["label"] for row in report.rows] == ["triads reach=2", "triads"]
    assert report.rows[1]["auc"] > 0.75
    assert {plot.title for plot in report.plots} >= {"Reliability", "How hard edges are"}
    assert len(report.exchanges[0].answers) == 10
    assert "signed graph" in said[0]
