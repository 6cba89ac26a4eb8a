"""`thrifty demo`: what the systems do, on a real model and a real graph."""

import importlib
from collections.abc import Callable
from pathlib import Path

from thrifty.progress import Track
from thrifty.report import Report

PARTS = ("graph", "prune", "moe", "kv")
"""The systems that show something, the quick one first: each has a `demo.py`."""


def run(part: str, command: str, track: Track, say: Callable[[str], None]) -> Report:
    """What the demo of one system shows."""
    return importlib.import_module(f"thrifty.{part}.demo").run(command, track, say)


def joined(reports: dict[str, Report]) -> Report:
    """The rows of all parts, each with its `part`, and one provenance with the seconds of all."""
    rows = [{"part": part, **row} for part, report in reports.items() for row in report.rows]
    origins = [report.provenance for report in reports.values()]
    whole = {**origins[0], "seconds": round(sum(origin["seconds"] for origin in origins), 3)}
    return Report("thrifty demo", "demo", rows, [], provenance=whole)


def free_folder(parent: Path) -> Path:
    """`thrifty-demo`, or the first of `thrifty-demo-2`, ... that is not there yet."""
    number, folder = 1, parent / "thrifty-demo"
    while folder.exists():
        number += 1
        folder = parent / f"thrifty-demo-{number}"
    return folder
