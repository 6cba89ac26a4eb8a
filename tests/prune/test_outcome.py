"""What a report tells of a pruned network is what it costs and computes."""

import pytest
import torch

from thrifty.prune.job import PruneJob
from thrifty.prune.methods.uniform import Uniform
from thrifty.prune.outcome import outcome_of
from thrifty.prune.report import COLUMNS, report
from thrifty.prune.unpruned import Unpruned


@pytest.fixture(scope="module")
def outcome(made_job: PruneJob):
    """A uniformly narrower network after its training."""
    from conftest import fresh

    job = fresh(made_job)
    return outcome_of(Uniform(), Uniform().plan(job), job, 1.5, batch=4), job


def test_the_row_holds_what_the_small_network_is(outcome) -> None:
    found, job = outcome
    row, small = found.row, found.small
    assert row["params_after"] == sum(one.numel() for one in small.parameters())
    assert row["params_before"] == sum(one.numel() for one in job.model.parameters())
    assert row["flops_ratio"] == row["flops_after"] / row["flops_before"] <= 0.5
    assert row["spent"] == row["flops_after"] <= row["budget"] == job.budget.limit
    assert row["max_abs_difference"] < 1e-5
    assert row["seconds"] == 1.5
    assert row["latency_ms"].keys() == {"batch", "before", "after"}
    assert row["widths"] == {name: [int(kept.sum()), len(kept)] for name, kept in found.plan.keep.items()}


def test_the_accuracy_is_that_of_the_small_network_on_all_test_images(outcome) -> None:
    found, job = outcome
    mean, spread = job.images.moments()
    inputs = ((job.images.test.pixels / 255 - mean) / spread).permute(0, 3, 1, 2)
    with torch.no_grad():
        answers = found.small.eval()(inputs).argmax(1)
    assert found.row["accuracy"] == pytest.approx(float((answers == job.images.test.labels).float().mean()), abs=1e-6)
    assert found.row["test_images"] == len(job.images.test)


def test_the_page_shows_widths_and_training(outcome) -> None:
    found, _ = outcome
    history = [
        {"epoch": 1, "accuracy_train": 0.5, "accuracy_whole": 0.4, "accuracy_masked": 0.3, "kept": 8.0, "target": 4.0},
        {"epoch": 2, "accuracy_train": 0.6, "kept": 4.0, "target": 4.0},
    ]
    told = report("a title", [found.row], history, ["a note"], {"seconds": 1.0})
    assert [plot.title for plot in told.plots] == ["Width of each layer", "Training", "Budget"]
    assert "Width of each layer" in told.page()
    assert all(column.value(found.row) is not None for column in COLUMNS)
    assert len(report("a title", [found.row], [], [], {}).plots) == 1


def test_an_unpruned_network_keeps_everything(made_job: PruneJob) -> None:
    from conftest import fresh

    job = fresh(made_job)
    row = outcome_of(Unpruned(), Unpruned().plan(job), job, 1.0, batch=4).row
    assert row["method"] == "unpruned"
    assert row["flops_ratio"] == 1
    assert all(kept == size for kept, size in row["widths"].values())
