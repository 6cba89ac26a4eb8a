"""The prune part of the demo: three networks, their widths and their training."""

from dataclasses import replace

import pytest

from thrifty import catalogue
from thrifty.progress import silent
from thrifty.prune import demo


def test_every_method_of_the_demo_exists() -> None:
    assert set(demo.METHODS) <= set(catalogue.names("prune"))


@pytest.mark.slow
def test_the_demo_prunes_and_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(demo, "TRAINING", replace(demo.TRAINING, epochs=2))
    said: list[str] = []
    report = demo.run("thrifty demo", silent, said.append)
    assert [row["method"] for row in report.rows] == ["ato", "uniform", "unpruned"]
    assert [row["flops_ratio"] <= 0.5 for row in report.rows] == [True, True, False]
    assert report.plots[0].title == "Width of each layer"
    assert "channels in 6 groups" in " ".join(said)
