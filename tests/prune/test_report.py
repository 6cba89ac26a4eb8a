"""The plots of a report hold what was measured."""

from typing import Any

import pytest

from thrifty.prune.report import curves, report, widths


@pytest.mark.parametrize(("difference", "is_suspicious"), [(1e-6, False), (0.5, True), (float("nan"), True)])
def test_a_small_network_that_is_not_the_masked_one_is_told(difference: float, is_suspicious: bool) -> None:
    row: dict[str, Any] = {"limits": [], "max_abs_difference": difference, "test_images": 9, "widths": {"a": [1, 2]}}
    notes = report("", [row], [], [], {}).notes
    assert any("NOT EQUAL" in note for note in notes) is is_suspicious


def test_widths_are_shown_in_the_order_of_the_network() -> None:
    plot = widths({"b": [3, 8], "a": [1, 16]})
    assert [series.name for series in plot.series] == ["before", "after"]
    assert [list(series.y) for series in plot.series] == [[8, 16], [3, 1]]


def test_curves_leave_out_what_was_never_noted_and_gaps_where_it_was_not() -> None:
    assert curves([]) == []
    (plot,) = curves([{"epoch": 1, "accuracy_train": 0.2}])
    assert [series.name for series in plot.series] == ["training images"]
    history = [{"epoch": 1, "accuracy_train": 0.2, "accuracy_whole": 0.1}, {"epoch": 2, "accuracy_train": 0.3}]
    (plot,) = curves(history)
    assert [list(series.y) for series in plot.series] == [[0.2, 0.3], [0.1, None]]
