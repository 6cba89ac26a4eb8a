"""The demo of moe, on a tiny model in place of SmolLM2."""

import pytest

from thrifty import llm
from thrifty.moe import demo
from thrifty.progress import silent


def test_the_demo_compares_experts_with_static_pruning(monkeypatch: pytest.MonkeyPatch, language) -> None:
    monkeypatch.setattr(llm, "load", lambda name: language)
    said: list[str] = []
    report = demo.run("thrifty demo", silent, said.append)
    assert [row["label"] for row in report.rows] == ["dense", "magnitude", "wanda_sp", "cluster of 8"]
    assert all(row["active_ratio_mlp"] == pytest.approx(0.75, abs=0.09) for row in report.rows[1:])
    assert {plot.title for plot in report.plots} >= {"Quality against what is active", "Channels by layer"}
    assert "<svg" in report.page()
    assert any("measuring on" in line for line in said)
