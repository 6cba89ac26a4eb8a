"""The report: a table with the dense model first, plots of quality, layers, load and training."""

from thrifty.moe import report, result
from thrifty.moe.job import MoeJob
from thrifty.moe.methods.tomoe import Tomoe
from thrifty.moe.methods.wanda_sp import WandaSp


def test_the_report_of_a_trained_and_a_static_method(job: MoeJob) -> None:
    rows = []
    for method in (WandaSp(), Tomoe(num_experts=4)):
        row = result.of(job, method, method.plan(job), job.corpus.held_out)
        rows.append({"label": row["method"], "text": "random", "window": 32, "windows": 4} | row)
    one = report.report("title", rows, {"seconds": 1.0}, ["a note"])
    assert [row["label"] for row in one.rows] == ["dense", "wanda_sp", "tomoe"]
    titles = [plot.title for plot in one.plots]
    assert titles[:2] == ["Quality against what is active", "Channels by layer"]
    assert "Training" in titles
    assert "a note" in one.notes
    assert "times the dense model's perplexity" in one.headline
    text = one.markdown()
    assert "50.0%" in text
    assert "<svg" in one.page()
    assert not any("tokens_per_second" in column.key for column in one.columns)
