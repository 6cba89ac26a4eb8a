"""Items of the bundled tasks are read from the package, whatever lm-eval adds to the call."""

import pytest

from thrifty.moe.tasks import items


def test_items_come_as_the_split_test() -> None:
    pytest.importorskip("datasets")
    rows = items.load("facts", version=1)["test"]
    assert rows[0]["choices"][rows[0]["answer"]] == "Paris"
