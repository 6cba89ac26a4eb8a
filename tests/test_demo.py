"""The demo: every part runs, its rows are joined, and an earlier one is never overwritten."""

import importlib
from pathlib import Path

from thrifty import demo
from thrifty.report import Report


def test_every_part_has_a_demo() -> None:
    for part in demo.PARTS:
        assert callable(importlib.import_module(f"thrifty.{part}.demo").run)


def test_the_rows_of_all_parts_are_joined() -> None:
    parts = {
        name: Report(name, name, [{"label": name}], [], provenance={"seconds": 1.5, "command": "thrifty demo"})
        for name in demo.PARTS
    }
    whole = demo.joined(parts)
    assert [row["part"] for row in whole.rows] == list(demo.PARTS)
    assert whole.provenance["seconds"] == 1.5 * len(parts)


def test_the_demo_never_overwrites_an_earlier_one(tmp_path: Path) -> None:
    assert demo.free_folder(tmp_path).name == "thrifty-demo"
    (tmp_path / "thrifty-demo").mkdir()
    assert demo.free_folder(tmp_path).name == "thrifty-demo-2"
